//! The header of a relayed data connection: a PROXY header with an authenticated TLV.
//!
//! A node that gets a data connection for a port of another node carries it to the owner of the port (see
//! `relay`). The PROXY header names the client and the address that it reached. Any host on the network could
//! send such a header, so it has a TLV with the time and an HMAC under a key that only the cluster has. The
//! HMAC covers everything that the owner acts on, and the owner's name.
//!
//! The TLV of type 0xE5 (the range 0xE0 to 0xEF is for private use):
//!
//! | bytes | content |
//! | --- | --- |
//! | 1 | version, 1 |
//! | 16 | name of the key |
//! | 8 | time in ms since the Unix epoch, by the registry's clock |
//! | 2 | passive port |
//! | 32 | HMAC-SHA256 |

use std::net::SocketAddr;

use aws_lc_rs::hmac;
use common::{node::NodeName, registry::SharedKey};

use super::proxy::{self, ParsedHeader, ProxyHeader, Tlv};

/// The type of the TLV.
const TLV_KIND: u8 = 0xe5;

/// The version of the TLV.
const VERSION: u8 = 1;

/// Length of the HMAC in bytes.
const MAC: usize = 32;

/// Length of the TLV's value in bytes.
const VALUE: usize = 1 + SharedKey::NAME + 8 + 2 + MAC;

/// Largest difference between the time in the TLV and the owner's clock, in ms. Both are the registry's
/// clock.
const VALIDITY: u64 = 10_000;

/// The purpose of the HMAC. An HMAC for another purpose under the same key differs.
const LABEL: &[u8] = b"distributed-ftp relayed data connection 1\0";

/// A data connection that another node or a relay carries to the owner of its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relayed {
    /// The client's address.
    pub client: SocketAddr,
    /// The address and port that the client connected to.
    pub reached: SocketAddr,
    /// The passive port.
    pub port: u16,
}

/// The reason why a relayed connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayRefused {
    #[error("the relay TLV is malformed, or the PROXY header has two of them")]
    Malformed,
    #[error("the relay TLV names a key that this node does not have")]
    UnknownKey,
    #[error("the relay TLV has a wrong HMAC, or is for another node or port")]
    WrongMac,
    #[error("the relay TLV was made more than 10 s ago, or in the future (the registry's clock)")]
    Expired,
}

impl RelayRefused {
    /// The label `reason` of `ftp_relay_refused_total`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownKey => "unknown_key",
            Self::WrongMac => "wrong_mac",
            Self::Expired => "expired",
        }
    }
}

/// The header of a connection that is carried to the node `owner`. `now`: the registry's clock in ms since
/// the Unix epoch.
pub fn seal(relayed: &Relayed, owner: &NodeName, key: &SharedKey, now: u64) -> Vec<u8> {
    let mut value = [0; VALUE];
    value[0] = VERSION;
    value[1..17].copy_from_slice(key.name());
    value[17..25].copy_from_slice(&now.to_be_bytes());
    value[25..27].copy_from_slice(&relayed.port.to_be_bytes());
    let mac = hmac::sign(&mac_key(key), &authenticated(&value[..VALUE - MAC], relayed, owner));
    value[VALUE - MAC..].copy_from_slice(mac.as_ref());
    proxy::write(relayed.client, relayed.reached, &[Tlv { kind: TLV_KIND, value: &value }])
}

/// Checks the PROXY header at the start of `header`, which reached the node `own` at `port`. `Ok(None)`: the
/// header has no relay TLV, as that of a balancer. `now`: the registry's clock in ms since the Unix epoch.
///
/// # Errors
/// The header has a relay TLV that is not valid here and now.
pub fn verify(
    header: &[u8],
    own: &NodeName,
    port: u16,
    keys: &[SharedKey],
    now: u64,
) -> Result<Option<Relayed>, RelayRefused> {
    let Some(value) = relay_tlv(header)? else { return Ok(None) };
    let Ok(ParsedHeader::Complete { header: ProxyHeader::Proxied { source, destination }, .. }) =
        proxy::parse(header)
    else {
        return Err(RelayRefused::Malformed);
    };
    let relayed = Relayed { client: source, reached: destination, port };
    let value: &[u8; VALUE] = value.try_into().map_err(|_| RelayRefused::Malformed)?;
    let (claims, mac) = value.split_at(VALUE - MAC);
    if claims[0] != VERSION {
        return Err(RelayRefused::Malformed);
    }
    let key = keys.iter().find(|key| key.name()[..] == claims[1..17]).ok_or(RelayRefused::UnknownKey)?;
    hmac::verify(&mac_key(key), &authenticated(claims, &relayed, own), mac)
        .map_err(|_| RelayRefused::WrongMac)?;
    // The slices have these lengths.
    let made = u64::from_be_bytes(claims[17..25].try_into().unwrap_or_default());
    let sealed_port = u16::from_be_bytes(claims[25..27].try_into().unwrap_or_default());
    if sealed_port != port {
        return Err(RelayRefused::WrongMac);
    }
    if made.abs_diff(now) > VALIDITY {
        return Err(RelayRefused::Expired);
    }
    Ok(Some(relayed))
}

/// The value of the relay TLV, if the header has one.
fn relay_tlv(header: &[u8]) -> Result<Option<&[u8]>, RelayRefused> {
    let mut found = None;
    for tlv in proxy::tlvs(header) {
        match tlv {
            Ok(Tlv { kind: TLV_KIND, value }) => {
                if found.replace(value).is_some() {
                    return Err(RelayRefused::Malformed);
                }
            }
            Ok(_) => {}
            // A balancer's own TLVs do not matter to a node.
            Err(cut) if cut.kind != TLV_KIND && found.is_none() => {}
            Err(_) => return Err(RelayRefused::Malformed),
        }
    }
    Ok(found)
}

fn mac_key(key: &SharedKey) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, key.secret())
}

/// The bytes under the HMAC. All parts but the last have a fixed length.
fn authenticated(claims: &[u8], relayed: &Relayed, owner: &NodeName) -> Vec<u8> {
    let mut bytes = [LABEL, claims].concat();
    for address in [relayed.client, relayed.reached] {
        bytes.extend_from_slice(&proxy::mapped(address.ip()).octets());
        bytes.extend_from_slice(&address.port().to_be_bytes());
    }
    bytes.extend_from_slice(owner.as_str().as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_700_000_000_000;
    const PORT: u16 = 50_007;

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    fn relayed() -> Relayed {
        let [client, reached] = ["192.0.2.7:40000", "198.51.100.1:50007"].map(|text| text.parse().unwrap());
        Relayed { client, reached, port: PORT }
    }

    fn any_relayed() -> impl Strategy<Value = Relayed> {
        let address = || {
            (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
        };
        (address(), address(), any::<u16>()).prop_map(|(client, reached, port)| Relayed {
            client,
            reached,
            port,
        })
    }

    proptest! {
        #[test]
        fn a_sealed_header_is_accepted_by_its_owner_and_refused_after_a_change_of_any_bit(
            relayed in any_relayed(),
            bit: prop::sample::Index,
            rest: Vec<u8>,
        ) {
            let (key, owner) = (SharedKey::random(1), name("ftp-1"));
            let header = seal(&relayed, &owner, &key, NOW);
            let check = |header: &[u8]| {
                verify(header, &owner, relayed.port, &[SharedKey::random(2), key.clone()], NOW)
            };
            prop_assert_eq!(check(&[&header[..], &rest].concat()), Ok(Some(relayed)));
            let mut changed = header;
            let bit = bit.index(changed.len() * 8);
            changed[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!matches!(check(&changed), Ok(Some(_))), "bit {}", bit);
        }

        #[test]
        fn no_bytes_without_the_key_are_accepted(tlv: Vec<u8>) {
            let header = proxy::write(
                relayed().client,
                relayed().reached,
                &[Tlv { kind: TLV_KIND, value: &tlv[..tlv.len().min(1000)] }],
            );
            prop_assert!(verify(&header, &name("ftp-1"), PORT, &[SharedKey::random(1)], NOW).is_err());
        }
    }

    #[test]
    fn a_header_is_for_one_owner_and_one_port_and_for_ten_seconds() {
        let (key, owner) = (SharedKey::random(1), name("ftp-1"));
        let header = seal(&relayed(), &owner, &key, NOW);
        let keys = [key];
        let check = |own: &str, port, now| verify(&header, &name(own), port, &keys, now);
        for now in [NOW - VALIDITY, NOW, NOW + VALIDITY] {
            assert_eq!(check("ftp-1", PORT, now), Ok(Some(relayed())));
        }
        for now in [0, NOW - VALIDITY - 1, NOW + VALIDITY + 1, u64::MAX] {
            assert_eq!(check("ftp-1", PORT, now), Err(RelayRefused::Expired));
        }
        assert_eq!(check("ftp-2", PORT, NOW), Err(RelayRefused::WrongMac));
        assert_eq!(check("ftp-1", PORT + 1, NOW), Err(RelayRefused::WrongMac));
        let strangers = [SharedKey::random(1)];
        assert_eq!(verify(&header, &owner, PORT, &strangers, NOW), Err(RelayRefused::UnknownKey));
        assert_eq!(verify(&header, &owner, PORT, &[], NOW), Err(RelayRefused::UnknownKey));
    }

    #[test]
    fn two_relay_tlvs_or_a_cut_one_are_malformed_and_none_is_a_balancers_header() {
        let (key, owner) = (SharedKey::random(1), name("ftp-1"));
        let header = seal(&relayed(), &owner, &key, NOW);
        let value = proxy::tlvs(&header).next().unwrap().unwrap().value;
        let keys = [key.clone()];
        let check = |tlvs: &[Tlv<'_>]| {
            let header = proxy::write(relayed().client, relayed().reached, tlvs);
            verify(&header, &owner, PORT, &keys, NOW)
        };
        let tlv = |value| Tlv { kind: TLV_KIND, value };
        let other = Tlv { kind: 4, value: b"no operation" };
        assert_eq!(check(&[other, tlv(value), other]), Ok(Some(relayed())));
        assert_eq!(check(&[tlv(value), tlv(value)]), Err(RelayRefused::Malformed));
        assert_eq!(check(&[tlv(value), tlv(b"")]), Err(RelayRefused::Malformed));
        assert_eq!(check(&[tlv(&value[1..])]), Err(RelayRefused::Malformed));
        let longer = [value, b"\0"].concat();
        assert_eq!(check(&[tlv(&longer)]), Err(RelayRefused::Malformed));
        let newer = [&[VERSION + 1], &value[1..]].concat();
        assert_eq!(check(&[tlv(&newer)]), Err(RelayRefused::Malformed));
        assert_eq!(check(&[]), Ok(None));
        assert_eq!(check(&[other]), Ok(None));
        let version_1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n";
        assert_eq!(verify(version_1, &owner, PORT, &keys, NOW), Ok(None));
    }
}
