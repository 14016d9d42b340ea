//! Sessions as every part of the cluster knows them.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::node::NodeName;

/// Names one control connection, cluster-wide: 16 hexadecimal digits, random.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(u64);

impl SessionId {
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The id as it stands in TLS session tickets.
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_be_bytes(bytes))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 16 hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("a session id is 16 hexadecimal digits")]
pub struct InvalidSessionId;

impl FromStr for SessionId {
    type Err = InvalidSessionId;

    fn from_str(text: &str) -> Result<Self, InvalidSessionId> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(InvalidSessionId);
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| InvalidSessionId)
    }
}

impl Serialize for SessionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What the registry holds about one session that has logged in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    pub id: SessionId,
    pub node: NodeName,
    pub user: String,
    /// The client's real address, as the PROXY header told it.
    pub address: IpAddr,
    /// Seconds since the Unix epoch at which the login succeeded.
    pub since: u64,
}

/// How many sessions a login may find already there. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionLimits {
    /// Sessions of this user, over all nodes.
    pub per_user: Option<u32>,
    /// Sessions from this client address, over all nodes and users.
    pub per_address: Option<u32>,
    /// Sessions of this user from this client address, over all nodes.
    pub per_user_and_address: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text_form_and_nothing_else_is_one() {
        let id = SessionId::random();
        assert_eq!(id.to_string().parse::<SessionId>().unwrap(), id);
        for text in ["", "123", "00112233445566778", "+011223344556677", "zz11223344556677"] {
            assert!(text.parse::<SessionId>().is_err(), "{text:?}");
        }
    }
}
