//! The PROXY protocol's header, versions 1 and 2: who connected to the balancer, and where.
//!
//! After haproxy's `doc/proxy-protocol.txt`. Bytes come in as they arrive, and what cannot become
//! a header any more is told at once: nobody has to wait for the rest of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header that is read, in bytes: version 2 with IPv6 addresses and all its TLVs.
pub const MAX_HEADER: usize = V2_FIXED + V2_IPV6 + MAX_TLVS;

/// How many bytes of TLVs a header of version 2 may have. nginx and haproxy send far less.
const MAX_TLVS: usize = 1024;

/// What a header says of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The balancer connected for itself, as health checks do (LOCAL), or does not know the client (UNSPEC, and
    /// UNKNOWN of version 1).
    Local,
    /// For a client. IPv4 addresses that were written as mapped IPv6 ones are IPv4 here.
    Proxied { source: SocketAddr, destination: SocketAddr },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// So far a header's beginning.
    Incomplete,
    /// A header, and how many bytes it took. What follows is the client's.
    Complete { header: Header, length: usize },
}

/// The bytes do not begin a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a PROXY protocol header")]
pub struct Invalid;

/// Reads the header at the start of `bytes`.
///
/// # Errors
/// The bytes are no header's beginning, or one of a protocol other than TCP.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Invalid> {
    match bytes.first() {
        None => Ok(Parsed::Incomplete),
        Some(b'P') => version_1(bytes),
        Some(_) => version_2(bytes),
    }
}

/// `PROXY TCP4 <source> <destination> <source port> <destination port>\r\n`, at most 107 bytes.
fn version_1(bytes: &[u8]) -> Result<Parsed, Invalid> {
    const LONGEST: usize = 107;
    let mut fields = Fields { rest: &bytes[..bytes.len().min(LONGEST)] };
    let header = match fields.header() {
        Ok(header) => header,
        Err(Stop::Invalid) => return Err(Invalid),
        Err(Stop::End) if bytes.len() < LONGEST => return Ok(Parsed::Incomplete),
        Err(Stop::End) => return Err(Invalid),
    };
    let length = bytes.len().min(LONGEST) - fields.rest.len();
    Ok(Parsed::Complete { header, length })
}

/// Why a field of version 1 was not read.
enum Stop {
    /// The input ends in it.
    End,
    Invalid,
}

/// What of a line was not read yet.
struct Fields<'a> {
    rest: &'a [u8],
}

impl Fields<'_> {
    fn header(&mut self) -> Result<Header, Stop> {
        self.literal(b"PROXY ")?;
        match self.rest {
            [] => return Err(Stop::End),
            [b'U', ..] => return self.unknown(),
            _ => self.literal(b"TCP")?,
        }
        let address = match self.rest {
            [] => return Err(Stop::End),
            [b'4', ..] => ipv4,
            [b'6', ..] => ipv6,
            _ => return Err(Stop::Invalid),
        };
        self.rest = &self.rest[1..];
        self.literal(b" ")?;
        let source = self.field(b' ', address)?;
        let destination = self.field(b' ', address)?;
        let source = SocketAddr::new(source, self.field(b' ', port)?);
        let destination = SocketAddr::new(destination, self.field(b'\r', port)?);
        self.literal(b"\n")?;
        Ok(Header::Proxied { source, destination })
    }

    /// `UNKNOWN`, after which anything may follow up to the line end.
    fn unknown(&mut self) -> Result<Header, Stop> {
        self.literal(b"UNKNOWN")?;
        match self.rest {
            [] => return Err(Stop::End),
            [b' ' | b'\r', ..] => {}
            _ => return Err(Stop::Invalid),
        }
        let end = self.rest.iter().position(|b| *b == b'\r').ok_or(Stop::End)?;
        self.rest = &self.rest[end + 1..];
        self.literal(b"\n")?;
        Ok(Header::Local)
    }

    fn literal(&mut self, expected: &[u8]) -> Result<(), Stop> {
        match self.rest.strip_prefix(expected) {
            Some(rest) => self.rest = rest,
            None if expected.starts_with(self.rest) => return Err(Stop::End),
            None => return Err(Stop::Invalid),
        }
        Ok(())
    }

    /// What stands before `end`, by a reader that is told whether that is all of the field.
    fn field<T>(&mut self, end: u8, read: fn(&str, bool) -> Result<T, Stop>) -> Result<T, Stop> {
        let length = self.rest.iter().position(|b| *b == end);
        let text = &self.rest[..length.unwrap_or(self.rest.len())];
        let text = str::from_utf8(text).map_err(|_| Stop::Invalid)?;
        let value = read(text, length.is_some())?;
        // A reader that was not told so does not give a value.
        self.rest = &self.rest[length.ok_or(Stop::End)? + 1..];
        Ok(value)
    }
}

fn ipv4(text: &str, complete: bool) -> Result<IpAddr, Stop> {
    if complete {
        return text.parse::<Ipv4Addr>().map(IpAddr::from).map_err(|_| Stop::Invalid);
    }
    // What is there so far must be four numbers once the rest is guessed.
    let parts = text.split('.').count();
    let begun = if text.is_empty() || text.ends_with('.') { format!("{text}0") } else { text.to_owned() };
    let whole = format!("{begun}{}", ".0".repeat(4usize.saturating_sub(parts)));
    if whole.parse::<Ipv4Addr>().is_ok() { Err(Stop::End) } else { Err(Stop::Invalid) }
}

fn ipv6(text: &str, complete: bool) -> Result<IpAddr, Stop> {
    const LONGEST: usize = "0000:0000:0000:0000:0000:ffff:255.255.255.255".len();
    if complete {
        let address = text.parse::<Ipv6Addr>().map_err(|_| Stop::Invalid)?;
        return Ok(IpAddr::from(address).to_canonical());
    }
    let possible = text.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'));
    if possible && text.len() <= LONGEST { Err(Stop::End) } else { Err(Stop::Invalid) }
}

/// Decimal, without sign and leading zeros.
fn port(text: &str, complete: bool) -> Result<u16, Stop> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    match text.parse() {
        Ok(port) if plain => {
            if complete {
                Ok(port)
            } else {
                Err(Stop::End)
            }
        }
        Err(_) if text.is_empty() && !complete => Err(Stop::End),
        _ => Err(Stop::Invalid),
    }
}

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const V2_FIXED: usize = 16;
const V2_IPV4: usize = 12;
const V2_IPV6: usize = 36;

/// What the bytes after the fixed part of version 2 begin with.
#[derive(Clone, Copy)]
enum Addresses {
    /// Nothing of use.
    None,
    V4,
    V6,
}

fn version_2(bytes: &[u8]) -> Result<Parsed, Invalid> {
    let compared = bytes.len().min(SIGNATURE.len());
    if bytes[..compared] != SIGNATURE[..compared] {
        return Err(Invalid);
    }
    let local = match bytes.get(12) {
        None => return Ok(Parsed::Incomplete),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(Invalid),
    };
    let addresses = match bytes.get(13) {
        None => return Ok(Parsed::Incomplete),
        // A local connection's family is to be ignored.
        Some(_) if local => Addresses::None,
        Some(0x00) => Addresses::None,
        Some(0x11) => Addresses::V4,
        Some(0x21) => Addresses::V6,
        // UDP and Unix sockets.
        Some(_) => return Err(Invalid),
    };
    let least = match addresses {
        Addresses::None => 0,
        Addresses::V4 => V2_IPV4,
        Addresses::V6 => V2_IPV6,
    };
    // An ignored family may have addresses all the same.
    let most = MAX_TLVS + if least == 0 { V2_IPV6 } else { least };
    let length = match bytes[14..] {
        [] => return Ok(Parsed::Incomplete),
        [high] if usize::from(high) << 8 > most => return Err(Invalid),
        [_] => return Ok(Parsed::Incomplete),
        [high, low, ..] => usize::from(u16::from_be_bytes([high, low])),
    };
    if !(least..=most).contains(&length) {
        return Err(Invalid);
    }
    let Some(body) = bytes[V2_FIXED..].get(..length) else { return Ok(Parsed::Incomplete) };
    let header = match addresses {
        Addresses::None => Header::Local,
        Addresses::V4 => proxied::<4, V2_IPV4>(body)?,
        Addresses::V6 => proxied::<16, V2_IPV6>(body)?,
    };
    Ok(Parsed::Complete { header, length: V2_FIXED + length })
}

/// Source address, destination address, source port, destination port; TLVs after them are
/// skipped.
fn proxied<const ADDRESS: usize, const ALL: usize>(body: &[u8]) -> Result<Header, Invalid>
where
    IpAddr: From<[u8; ADDRESS]>,
{
    let (addresses, _) = body.split_first_chunk::<ALL>().ok_or(Invalid)?;
    let (source, rest) = addresses.split_first_chunk::<ADDRESS>().ok_or(Invalid)?;
    let (destination, rest) = rest.split_first_chunk::<ADDRESS>().ok_or(Invalid)?;
    let [a, b, c, d] = *rest else { return Err(Invalid) };
    let address = |ip: [u8; ADDRESS], port| SocketAddr::new(IpAddr::from(ip).to_canonical(), port);
    Ok(Header::Proxied {
        source: address(*source, u16::from_be_bytes([a, b])),
        destination: address(*destination, u16::from_be_bytes([c, d])),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proxied(source: &str, destination: &str) -> Header {
        Header::Proxied { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    fn complete(header: Header, length: usize) -> Result<Parsed, Invalid> {
        Ok(Parsed::Complete { header, length })
    }

    #[test]
    fn version_1_lines_are_read_and_what_follows_is_left() {
        for (line, header) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 21\r\n", proxied("192.0.2.1:56324", "198.51.100.2:21")),
            ("PROXY TCP6 2001:db8::1 ::1 1 65535\r\n", proxied("[2001:db8::1]:1", "[::1]:65535")),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::1 5 21\r\n", proxied("192.0.2.1:5", "[::1]:21")),
            ("PROXY UNKNOWN\r\n", Header::Local),
            ("PROXY UNKNOWN ffff:f...f:ffff ffff 65535 65535\r\n", Header::Local),
        ] {
            let bytes = format!("{line}USER a\r\n");
            assert_eq!(parse(bytes.as_bytes()), complete(header, line.len()), "{line}");
        }
    }

    #[test]
    fn what_is_no_header_is_refused_at_its_first_wrong_byte() {
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
            assert_eq!(parse(line.as_bytes()), Err(Invalid), "{line:?}");
            assert_eq!(parse(&line.as_bytes()[..line.len() - 1]), Ok(Parsed::Incomplete), "{line:?}");
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
                assert_eq!(parse(&bytes), complete(Header::Local, bytes.len()));
            }
        }
    }

    #[test]
    fn version_2_of_other_protocols_or_lengths_is_refused() {
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
            assert_eq!(parse(&bytes), Err(Invalid), "{command:x} {family:x} {length}");
            assert_eq!(parse(&bytes[..16]), Err(Invalid), "decided by the fixed part");
        }
        assert_eq!(parse(b"\r\n\r\n\0\r\nQUIX"), Err(Invalid));
    }

    /// A header as a balancer writes it.
    fn header() -> impl Strategy<Value = (Vec<u8>, Header)> {
        let port = any::<u16>;
        let v4 = (any::<[Ipv4Addr; 2]>(), port(), port())
            .prop_map(|([a, b], p, q)| (IpAddr::from(a), IpAddr::from(b), p, q));
        let v6 = (any::<[Ipv6Addr; 2]>(), port(), port())
            .prop_map(|([a, b], p, q)| (IpAddr::from(a), IpAddr::from(b), p, q));
        let tlvs = prop::collection::vec(any::<u8>(), 0..=MAX_TLVS);
        (prop_oneof![v4, v6], prop::option::of(tlvs)).prop_map(|((a, b, p, q), tlvs)| {
            let address = |ip: IpAddr, port| SocketAddr::new(ip.to_canonical(), port);
            let header = Header::Proxied { source: address(a, p), destination: address(b, q) };
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
        fn a_header_is_read_back_as_written((bytes, header) in header(), rest: Vec<u8>) {
            prop_assert!(bytes.len() <= MAX_HEADER);
            let with_rest = [&bytes[..], &rest].concat();
            prop_assert_eq!(parse(&with_rest), complete(header, bytes.len()));
        }

        #[test]
        fn every_part_of_a_header_is_incomplete((bytes, _) in header()) {
            for length in 0..bytes.len() {
                prop_assert_eq!(parse(&bytes[..length]), Ok(Parsed::Incomplete), "{}", length);
            }
        }

        #[test]
        fn no_bytes_make_it_panic_or_wait_for_ever(
            start in prop::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP6 ", SIGNATURE]),
            rest: Vec<u8>,
        ) {
            let mut bytes = [start, &rest].concat();
            _ = parse(&bytes);
            bytes.resize(MAX_HEADER, b'1');
            prop_assert_ne!(parse(&bytes), Ok(Parsed::Incomplete));
        }

        #[test]
        fn what_was_refused_stays_refused((mut bytes, _) in header(), at: prop::sample::Index, to: u8) {
            let at = at.index(bytes.len());
            bytes[at] = to;
            let first = (0..=bytes.len()).find(|n| parse(&bytes[..*n]).is_err());
            if let Some(first) = first {
                for length in first..=bytes.len() {
                    prop_assert_eq!(parse(&bytes[..length]), Err(Invalid));
                }
            }
        }
    }
}
