//! Bans: after failed logins, a user name or an address has to wait before the next attempt.

use std::{fmt, net::IpAddr, str::FromStr};

use common::client_network::network_of;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::accounts::name::UserName;

/// Kind of a ban: failures are counted per address and per user name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BanKind {
    Address,
    User,
}

impl BanKind {
    /// The kind as the API, the log and the metrics spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::User => "user",
        }
    }
}

/// The address or user name whose failures are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BanSubject {
    /// An IPv4 address, or the first address of an IPv6 /64 network.
    Address(IpAddr),
    User(UserName),
}

/// A ban in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    pub subject: BanSubject,
    /// End of the ban, in milliseconds since the Unix epoch.
    pub until: u64,
}

/// The text is neither an address nor a network whose failures are counted together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither an IP address nor an IPv6 /64 network")]
pub struct InvalidAddress;

impl BanSubject {
    /// The subject of an address, or of a network as [`Display`](fmt::Display) shows it.
    ///
    /// # Errors
    /// The text is neither.
    pub fn address(text: &str) -> Result<Self, InvalidAddress> {
        let address = match text.split_once('/') {
            None => IpAddr::from_str(text).map_err(|_| InvalidAddress)?,
            Some(_) => {
                let net = IpNet::from_str(text).map_err(|_| InvalidAddress)?;
                let expected = if net.addr().is_ipv4() { 32 } else { 64 };
                if net.prefix_len() == expected { net.addr() } else { return Err(InvalidAddress) }
            }
        };
        Ok(Self::Address(network_of(address)))
    }

    /// The kind of a ban of this subject.
    pub fn kind(&self) -> BanKind {
        match self {
            Self::Address(_) => BanKind::Address,
            Self::User(_) => BanKind::User,
        }
    }
}

impl fmt::Display for BanSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(IpAddr::V6(network)) => write!(f, "{network}/64"),
            Self::Address(address) => address.fmt(f),
            Self::User(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_counts_per_network_and_ipv4_per_address_in_every_notation() {
        for (text, shown) in [
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2::/64", "2001:db8:1:2::/64"),
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.7/32", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
        ] {
            let subject = BanSubject::address(text).unwrap();
            assert_eq!(subject.to_string(), shown);
            assert_eq!(BanSubject::address(shown).unwrap(), subject);
        }
        for text in ["", "ann", "192.0.2.0/24", "2001:db8::/32", "2001:db8::1/128", "192.0.2.7/x"] {
            assert_eq!(BanSubject::address(text), Err(InvalidAddress), "{text}");
        }
    }
}
