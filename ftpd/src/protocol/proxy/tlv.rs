//! Version 2 of the PROXY header beyond its addresses: reading its TLVs, and writing a header.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{MAX_TLVS, ParsedHeader, ProxyHeader, SIGNATURE, V2_FIXED, V2_IPV4, V2_IPV6, parse};

/// Bytes of the type and the length of a TLV.
const TLV_FIXED: usize = 3;

/// A TLV of a version 2 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tlv<'h> {
    pub kind: u8,
    pub value: &'h [u8],
}

/// The header ends within a TLV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the PROXY header ends within the TLV of type {kind:#04x}")]
pub struct CutTlv {
    pub kind: u8,
}

/// The TLVs of the header at the start of `bytes`. None if the header is not complete, has no addresses, or
/// has version 1. After an error the iterator ends.
pub fn tlvs(bytes: &[u8]) -> impl Iterator<Item = Result<Tlv<'_>, CutTlv>> {
    let mut rest = tlv_bytes(bytes).unwrap_or_default();
    std::iter::from_fn(move || {
        let kind = *rest.first()?;
        let Some((fixed, after)) = rest.split_first_chunk::<TLV_FIXED>() else {
            rest = &[];
            return Some(Err(CutTlv { kind }));
        };
        let length = usize::from(u16::from_be_bytes([fixed[1], fixed[2]]));
        let Some((value, after)) = after.split_at_checked(length) else {
            rest = &[];
            return Some(Err(CutTlv { kind }));
        };
        rest = after;
        Some(Ok(Tlv { kind, value }))
    })
}

fn tlv_bytes(bytes: &[u8]) -> Option<&[u8]> {
    let Ok(ParsedHeader::Complete { header: ProxyHeader::Proxied { .. }, length }) = parse(bytes) else {
        return None;
    };
    let addresses = match *bytes.get(V2_FIXED - 3)? {
        _ if bytes.first() == Some(&b'P') => return None,
        0x11 => V2_IPV4,
        _ => V2_IPV6,
    };
    bytes.get(V2_FIXED + addresses..length)
}

/// A version 2 header for a connection of `source` to `destination`, with these TLVs.
///
/// If the addresses are of different families, IPv4 is written as IPv4-mapped IPv6.
///
/// # Panics
/// The TLVs are longer than receivers accept: 1,024 bytes.
pub fn write(source: SocketAddr, destination: SocketAddr, tlvs: &[Tlv<'_>]) -> Vec<u8> {
    let (family, addresses) = match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            (0x11, [&source.octets()[..], &destination.octets()].concat())
        }
        (source, destination) => {
            (0x21, [&mapped(source).octets()[..], &mapped(destination).octets()].concat())
        }
    };
    let extra: usize = tlvs.iter().map(|tlv| TLV_FIXED + tlv.value.len()).sum();
    assert!(extra <= MAX_TLVS, "{extra} bytes of TLVs");
    // At most V2_IPV6 + MAX_TLVS, so the conversions do not truncate.
    let length = (addresses.len() + 4 + extra) as u16;
    let mut header = Vec::with_capacity(V2_FIXED + usize::from(length));
    header.extend_from_slice(SIGNATURE);
    header.extend_from_slice(&[0x21, family]);
    header.extend_from_slice(&length.to_be_bytes());
    header.extend_from_slice(&addresses);
    header.extend_from_slice(&source.port().to_be_bytes());
    header.extend_from_slice(&destination.port().to_be_bytes());
    for tlv in tlvs {
        header.push(tlv.kind);
        header.extend_from_slice(&(tlv.value.len() as u16).to_be_bytes());
        header.extend_from_slice(tlv.value);
    }
    header
}

/// The address in the form of IPv6.
pub(in crate::protocol) fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
    }

    proptest! {
        #[test]
        fn a_written_header_is_read_back_with_its_tlvs(
            source in address(),
            destination in address(),
            values in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..100)), 0..8),
            rest: Vec<u8>,
        ) {
            let written: Vec<_> = values.iter().map(|(kind, value)| Tlv { kind: *kind, value }).collect();
            let header = write(source, destination, &written);
            let bytes = [&header[..], &rest].concat();
            let expected = ProxyHeader::Proxied { source, destination };
            let length = header.len();
            prop_assert_eq!(parse(&bytes), Ok(ParsedHeader::Complete { header: expected, length }));
            let read: Vec<_> = tlvs(&bytes).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(read, written);
        }

        #[test]
        fn a_header_that_ends_within_a_tlv_is_an_error_after_the_complete_ones(
            value in prop::collection::vec(any::<u8>(), 0..100),
            cut: prop::sample::Index,
        ) {
            let [source, destination] = ["192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap()];
            let complete = Tlv { kind: 4, value: &value };
            let mut header = write(source, destination, &[complete, Tlv { kind: 0xe5, value: b"value" }]);
            header.truncate(header.len() - 1 - cut.index(TLV_FIXED + 4));
            let length = (header.len() - V2_FIXED) as u16;
            header[V2_FIXED - 2..V2_FIXED].copy_from_slice(&length.to_be_bytes());
            let read: Vec<_> = tlvs(&header).collect();
            prop_assert_eq!(read, [Ok(complete), Err(CutTlv { kind: 0xe5 })]);
        }
    }

    #[test]
    fn headers_of_version_1_and_without_addresses_have_no_tlvs() {
        let local = [&SIGNATURE[..], &[0x20, 0x11, 0, 15], &[0; 12], &[4, 0, 0]].concat();
        for bytes in [&b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n\x04\0\0"[..], &local, b"", b"\r\n\r\n"] {
            assert_eq!(tlvs(bytes).count(), 0, "{bytes:?}");
        }
    }
}
