//! Parser for the PROXY protocol header, versions 1 and 2: the client's address and the address that it
//! connected to.
//!
//! Follows haproxy's `doc/proxy-protocol.txt`. It accepts partial input and refuses it at the first byte
//! that cannot belong to a header, so that the caller need not wait for more. [`tlvs`] reads what follows the
//! addresses of version 2, and [`write()`] makes a header.

mod tlv;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub(super) use self::tlv::mapped;
pub use self::tlv::{CutTlv, Tlv, tlvs, write};

/// Longest accepted header in bytes: version 2 with IPv6 addresses and `MAX_TLVS`.
pub const MAX_HEADER: usize = V2_FIXED + V2_IPV6 + MAX_TLVS;

/// Longest accepted TLVs of a version 2 header in bytes. nginx and haproxy send far fewer.
const MAX_TLVS: usize = 1024;

/// Content of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// The balancer connected on its own behalf, for example for a health check (LOCAL), or does not
    /// know the client (UNSPEC; UNKNOWN in version 1).
    Local,
    /// The balancer connected for a client. IPv4-mapped IPv6 addresses are converted to IPv4.
    Proxied { source: SocketAddr, destination: SocketAddr },
}

/// Result of parsing bytes that are valid so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParsedHeader {
    /// The bytes are the beginning of a header.
    Incomplete,
    /// A header and its length in bytes. The client's bytes follow it.
    Complete { header: ProxyHeader, length: usize },
}

/// The bytes are not the beginning of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a PROXY protocol header")]
pub struct InvalidHeader;

/// Parses the header at the start of `bytes`.
///
/// # Errors
/// The bytes do not begin a header, or the header is for another protocol than TCP.
pub fn parse(bytes: &[u8]) -> Result<ParsedHeader, InvalidHeader> {
    match bytes.first() {
        None => Ok(ParsedHeader::Incomplete),
        Some(b'P') => version_1(bytes),
        Some(_) => version_2(bytes),
    }
}

/// `PROXY TCP4 <source> <destination> <source port> <destination port>\r\n`, at most 107 bytes.
fn version_1(bytes: &[u8]) -> Result<ParsedHeader, InvalidHeader> {
    const LONGEST: usize = 107;
    let mut fields = FieldReader { rest: &bytes[..bytes.len().min(LONGEST)] };
    let header = match fields.header() {
        Ok(header) => header,
        Err(FieldError::Invalid) => return Err(InvalidHeader),
        Err(FieldError::Incomplete) if bytes.len() < LONGEST => return Ok(ParsedHeader::Incomplete),
        Err(FieldError::Incomplete) => return Err(InvalidHeader),
    };
    let length = bytes.len().min(LONGEST) - fields.rest.len();
    Ok(ParsedHeader::Complete { header, length })
}

/// Reason why a field of version 1 was not parsed.
enum FieldError {
    /// The input ends within the field.
    Incomplete,
    Invalid,
}

/// Reader of the fields of a version 1 line.
struct FieldReader<'a> {
    /// The part of the line that was not read yet.
    rest: &'a [u8],
}

impl FieldReader<'_> {
    fn header(&mut self) -> Result<ProxyHeader, FieldError> {
        self.literal(b"PROXY ")?;
        match self.rest {
            [] => return Err(FieldError::Incomplete),
            [b'U', ..] => return self.unknown(),
            _ => self.literal(b"TCP")?,
        }
        let address = match self.rest {
            [] => return Err(FieldError::Incomplete),
            [b'4', ..] => ipv4,
            [b'6', ..] => ipv6,
            _ => return Err(FieldError::Invalid),
        };
        self.rest = &self.rest[1..];
        self.literal(b" ")?;
        let source = self.field(b' ', address)?;
        let destination = self.field(b' ', address)?;
        let source = SocketAddr::new(source, self.field(b' ', port)?);
        let destination = SocketAddr::new(destination, self.field(b'\r', port)?);
        self.literal(b"\n")?;
        Ok(ProxyHeader::Proxied { source, destination })
    }

    /// Reads `UNKNOWN` and the line end; any text may stand between them.
    fn unknown(&mut self) -> Result<ProxyHeader, FieldError> {
        self.literal(b"UNKNOWN")?;
        match self.rest {
            [] => return Err(FieldError::Incomplete),
            [b' ' | b'\r', ..] => {}
            _ => return Err(FieldError::Invalid),
        }
        let end = self.rest.iter().position(|b| *b == b'\r').ok_or(FieldError::Incomplete)?;
        self.rest = &self.rest[end + 1..];
        self.literal(b"\n")?;
        Ok(ProxyHeader::Local)
    }

    fn literal(&mut self, expected: &[u8]) -> Result<(), FieldError> {
        match self.rest.strip_prefix(expected) {
            Some(rest) => self.rest = rest,
            None if expected.starts_with(self.rest) => return Err(FieldError::Incomplete),
            None => return Err(FieldError::Invalid),
        }
        Ok(())
    }

    /// Reads a field that ends with `end`. The second argument of `read` is true if the field is complete.
    fn field<T>(&mut self, end: u8, read: fn(&str, bool) -> Result<T, FieldError>) -> Result<T, FieldError> {
        let length = self.rest.iter().position(|b| *b == end);
        let text = &self.rest[..length.unwrap_or(self.rest.len())];
        let text = str::from_utf8(text).map_err(|_| FieldError::Invalid)?;
        let value = read(text, length.is_some())?;
        // `read` returns an error for an incomplete field, so `length` is known here.
        self.rest = &self.rest[length.ok_or(FieldError::Incomplete)? + 1..];
        Ok(value)
    }
}

fn ipv4(text: &str, complete: bool) -> Result<IpAddr, FieldError> {
    if complete {
        return text.parse::<Ipv4Addr>().map(IpAddr::from).map_err(|_| FieldError::Invalid);
    }
    // Complete the text with zeros; the result must be an address.
    let parts = text.split('.').count();
    let begun = if text.is_empty() || text.ends_with('.') { format!("{text}0") } else { text.to_owned() };
    let whole = format!("{begun}{}", ".0".repeat(4usize.saturating_sub(parts)));
    if whole.parse::<Ipv4Addr>().is_ok() { Err(FieldError::Incomplete) } else { Err(FieldError::Invalid) }
}

fn ipv6(text: &str, complete: bool) -> Result<IpAddr, FieldError> {
    const LONGEST: usize = "0000:0000:0000:0000:0000:ffff:255.255.255.255".len();
    if complete {
        let address = text.parse::<Ipv6Addr>().map_err(|_| FieldError::Invalid)?;
        return Ok(IpAddr::from(address).to_canonical());
    }
    let possible = text.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'));
    if possible && text.len() <= LONGEST { Err(FieldError::Incomplete) } else { Err(FieldError::Invalid) }
}

/// A decimal number without sign and leading zeros.
fn port(text: &str, complete: bool) -> Result<u16, FieldError> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    match text.parse() {
        Ok(port) if plain => {
            if complete {
                Ok(port)
            } else {
                Err(FieldError::Incomplete)
            }
        }
        Err(_) if text.is_empty() && !complete => Err(FieldError::Incomplete),
        _ => Err(FieldError::Invalid),
    }
}

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of signature, version and command, family, and length.
const V2_FIXED: usize = 16;
const V2_IPV4: usize = 12;
const V2_IPV6: usize = 36;

/// The addresses after the fixed part of version 2.
#[derive(Clone, Copy)]
enum AddressBlock {
    /// No addresses, or addresses that the receiver must ignore.
    None,
    V4,
    V6,
}

fn version_2(bytes: &[u8]) -> Result<ParsedHeader, InvalidHeader> {
    let compared = bytes.len().min(SIGNATURE.len());
    if bytes[..compared] != SIGNATURE[..compared] {
        return Err(InvalidHeader);
    }
    let local = match bytes.get(12) {
        None => return Ok(ParsedHeader::Incomplete),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(InvalidHeader),
    };
    let addresses = match bytes.get(13) {
        None => return Ok(ParsedHeader::Incomplete),
        // The receiver must ignore the family of a LOCAL connection.
        Some(_) if local => AddressBlock::None,
        Some(0x00) => AddressBlock::None,
        Some(0x11) => AddressBlock::V4,
        Some(0x21) => AddressBlock::V6,
        // UDP and Unix sockets.
        Some(_) => return Err(InvalidHeader),
    };
    let least = match addresses {
        AddressBlock::None => 0,
        AddressBlock::V4 => V2_IPV4,
        AddressBlock::V6 => V2_IPV6,
    };
    // A header without an address family may contain addresses all the same; they are skipped.
    let most = MAX_TLVS + if least == 0 { V2_IPV6 } else { least };
    let length = match bytes[14..] {
        [] => return Ok(ParsedHeader::Incomplete),
        [high] if usize::from(high) << 8 > most => return Err(InvalidHeader),
        [_] => return Ok(ParsedHeader::Incomplete),
        [high, low, ..] => usize::from(u16::from_be_bytes([high, low])),
    };
    if !(least..=most).contains(&length) {
        return Err(InvalidHeader);
    }
    let Some(body) = bytes[V2_FIXED..].get(..length) else { return Ok(ParsedHeader::Incomplete) };
    let header = match addresses {
        AddressBlock::None => ProxyHeader::Local,
        AddressBlock::V4 => proxied::<4, V2_IPV4>(body)?,
        AddressBlock::V6 => proxied::<16, V2_IPV6>(body)?,
    };
    Ok(ParsedHeader::Complete { header, length: V2_FIXED + length })
}

/// Reads source address, destination address, source port and destination port, and skips the TLVs.
fn proxied<const ADDRESS: usize, const ALL: usize>(body: &[u8]) -> Result<ProxyHeader, InvalidHeader>
where
    IpAddr: From<[u8; ADDRESS]>,
{
    let (addresses, _) = body.split_first_chunk::<ALL>().ok_or(InvalidHeader)?;
    let (source, rest) = addresses.split_first_chunk::<ADDRESS>().ok_or(InvalidHeader)?;
    let (destination, rest) = rest.split_first_chunk::<ADDRESS>().ok_or(InvalidHeader)?;
    let [a, b, c, d] = *rest else { return Err(InvalidHeader) };
    let address = |ip: [u8; ADDRESS], port| SocketAddr::new(IpAddr::from(ip).to_canonical(), port);
    Ok(ProxyHeader::Proxied {
        source: address(*source, u16::from_be_bytes([a, b])),
        destination: address(*destination, u16::from_be_bytes([c, d])),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proxied(source: &str, destination: &str) -> ProxyHeader {
        ProxyHeader::Proxied { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    fn complete(header: ProxyHeader, length: usize) -> Result<ParsedHeader, InvalidHeader> {
        Ok(ParsedHeader::Complete { header, length })
    }

    #[test]
    fn version_1_lines_are_parsed_and_following_bytes_are_left() {
        for (line, header) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 21\r\n", proxied("192.0.2.1:56324", "198.51.100.2:21")),
            ("PROXY TCP6 2001:db8::1 ::1 1 65535\r\n", proxied("[2001:db8::1]:1", "[::1]:65535")),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::1 5 21\r\n", proxied("192.0.2.1:5", "[::1]:21")),
            ("PROXY UNKNOWN\r\n", ProxyHeader::Local),
            ("PROXY UNKNOWN ffff:f...f:ffff ffff 65535 65535\r\n", ProxyHeader::Local),
        ] {
            let bytes = format!("{line}USER a\r\n");
            assert_eq!(parse(bytes.as_bytes()), complete(header, line.len()), "{line}");
        }
    }

    #[test]
    fn an_invalid_header_is_refused_at_its_first_wrong_byte() {
        let long = format!("PROXY UNKNOWN {}", "x".repeat(93));
        for line in [
            "U",
            "PRI",
            "PROXY  ",
            "PROXY T4",
            "PROXY TCP5",
            "PROXY UD",
            "PROXY UNKNOWNX",
            "PROXY TCP4 x",
            "PROXY TCP4 256",
            "PROXY TCP4 1.2.3.4.",
            "PROXY TCP4 1..",
            "PROXY TCP4 01",
            "PROXY TCP4 1.2.3 ",
            "PROXY TCP4 :",
            "PROXY TCP6 g",
            "PROXY TCP6 ::1 ::1 +",
            "PROXY TCP6 1:2 ",
            "PROXY TCP4 1.2.3.4 1.2.3.4 65536",
            "PROXY TCP4 1.2.3.4 1.2.3.4 01",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 ",
            "PROXY UNKNOWN\rx",
            &long,
        ] {
            assert_eq!(parse(line.as_bytes()), Err(InvalidHeader), "{line:?}");
            assert_eq!(parse(&line.as_bytes()[..line.len() - 1]), Ok(ParsedHeader::Incomplete), "{line:?}");
        }
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, body].concat()
    }

    #[test]
    fn version_2_local_and_unspecified_connections_are_local() {
        for (command, family) in [(0x20, 0), (0x20, 0x11), (0x20, 0x31), (0x21, 0)] {
            for body in [&[][..], &[7; 40]] {
                let bytes = v2(command, family, body);
                assert_eq!(parse(&bytes), complete(ProxyHeader::Local, bytes.len()));
            }
        }
    }

    #[test]
    fn version_2_headers_of_other_protocols_or_lengths_are_refused() {
        for (command, family, length) in [
            (0x22, 0x11, 12),
            (0x11, 0x11, 12),
            (0x21, 0x12, 12),
            (0x21, 0x22, 36),
            (0x21, 0x31, 216),
            (0x21, 0x11, 11),
            (0x21, 0x21, 35),
            (0x21, 0x11, 12 + MAX_TLVS + 1),
            (0x20, 0, 0xffff),
        ] {
            let bytes = v2(command, family, &vec![0; length]);
            assert_eq!(parse(&bytes), Err(InvalidHeader), "{command:x} {family:x} {length}");
            assert_eq!(parse(&bytes[..16]), Err(InvalidHeader), "decided by the fixed part");
        }
        assert_eq!(parse(b"\r\n\r\n\0\r\nQUIX"), Err(InvalidHeader));
    }

    /// The bytes of a header that a balancer may send, and its content.
    fn header() -> impl Strategy<Value = (Vec<u8>, ProxyHeader)> {
        let port = any::<u16>;
        let v4 = (any::<[Ipv4Addr; 2]>(), port(), port())
            .prop_map(|([a, b], p, q)| (IpAddr::from(a), IpAddr::from(b), p, q));
        let v6 = (any::<[Ipv6Addr; 2]>(), port(), port())
            .prop_map(|([a, b], p, q)| (IpAddr::from(a), IpAddr::from(b), p, q));
        let tlvs = prop::collection::vec(any::<u8>(), 0..=MAX_TLVS);
        (prop_oneof![v4, v6], prop::option::of(tlvs)).prop_map(|((a, b, p, q), tlvs)| {
            let address = |ip: IpAddr, port| SocketAddr::new(ip.to_canonical(), port);
            let header = ProxyHeader::Proxied { source: address(a, p), destination: address(b, q) };
            let family = if a.is_ipv4() { 4 } else { 6 };
            let Some(tlvs) = tlvs else {
                return (format!("PROXY TCP{family} {a} {b} {p} {q}\r\n").into_bytes(), header);
            };
            let octets = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let body = [octets(a), octets(b), p.to_be_bytes().into(), q.to_be_bytes().into(), tlvs].concat();
            (v2(0x21, if family == 4 { 0x11 } else { 0x21 }, &body), header)
        })
    }

    proptest! {
        #[test]
        fn a_written_header_is_parsed_back((bytes, header) in header(), rest: Vec<u8>) {
            prop_assert!(bytes.len() <= MAX_HEADER);
            let with_rest = [&bytes[..], &rest].concat();
            prop_assert_eq!(parse(&with_rest), complete(header, bytes.len()));
        }

        #[test]
        fn every_proper_prefix_of_a_header_is_incomplete((bytes, _) in header()) {
            for length in 0..bytes.len() {
                prop_assert_eq!(parse(&bytes[..length]), Ok(ParsedHeader::Incomplete), "{}", length);
            }
        }

        #[test]
        fn no_input_causes_a_panic_or_stays_incomplete_for_ever(
            start in prop::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP6 ", SIGNATURE]),
            rest: Vec<u8>,
        ) {
            let mut bytes = [start, &rest].concat();
            _ = parse(&bytes);
            bytes.resize(MAX_HEADER, b'1');
            prop_assert_ne!(parse(&bytes), Ok(ParsedHeader::Incomplete));
        }

        #[test]
        fn more_bytes_do_not_make_a_refused_header_valid(
            (mut bytes, _) in header(),
            at: prop::sample::Index,
            to: u8,
        ) {
            let at = at.index(bytes.len());
            bytes[at] = to;
            let first = (0..=bytes.len()).find(|n| parse(&bytes[..*n]).is_err());
            if let Some(first) = first {
                for length in first..=bytes.len() {
                    prop_assert_eq!(parse(&bytes[..length]), Err(InvalidHeader));
                }
            }
        }
    }
}
