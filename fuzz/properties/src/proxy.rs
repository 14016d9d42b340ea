//! Property of the PROXY header of a balancer.

use ftpd::protocol::proxy::{MAX_HEADER, ParsedHeader, ProxyHeader, parse};

/// Property of a PROXY header and the bytes that follow it: a result for the first bytes does not
/// change when more bytes arrive.
///
/// * Bytes after a complete header do not change the header.
/// * An invalid header stays invalid.
/// * The parser decides after at most [`MAX_HEADER`] bytes.
pub fn proxy_header(input: &[u8]) {
    let mut decided = None;
    for end in 0..=input.len().min(MAX_HEADER + 2) {
        let parsed = parse(&input[..end]);
        match (&decided, &parsed) {
            (None, Ok(ParsedHeader::Incomplete)) => {
                assert!(end < MAX_HEADER, "the header is still incomplete after {end} bytes")
            }
            (None, _) => {
                if let Ok(ParsedHeader::Complete { length, .. }) = parsed {
                    assert_eq!(length, end, "the parser decides late, or consumes too many bytes");
                }
                decided = Some(parsed);
            }
            (Some(decided), _) => assert_eq!(*decided, parsed, "the result changes at byte {end}"),
        }
    }
    if let Some(decided) = decided {
        assert_eq!(parse(input), decided);
        if let Ok(ParsedHeader::Complete { header: ProxyHeader::Proxied { source, destination }, .. }) =
            decided
        {
            for address in [source, destination] {
                assert_eq!(address.ip(), address.ip().to_canonical(), "an IPv4-mapped IPv6 address");
            }
        }
    }
}
