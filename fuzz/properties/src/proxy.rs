//! The PROXY header of a balancer.

use ftpd::protocol::proxy::{MAX_HEADER, ParsedHeader, ProxyHeader, parse};

/// A header and what follows it.
///
/// What was said of a beginning holds for all that it can become: no byte behind a complete header
/// changes it, nothing makes valid what is invalid, and no more is waited for than
/// [`MAX_HEADER`] bytes.
pub fn proxy_header(input: &[u8]) {
    let mut decided = None;
    for end in 0..=input.len().min(MAX_HEADER + 2) {
        let parsed = parse(&input[..end]);
        match (&decided, &parsed) {
            (None, Ok(ParsedHeader::Incomplete)) => {
                assert!(end < MAX_HEADER, "still waiting after {end} bytes")
            }
            (None, _) => {
                if let Ok(ParsedHeader::Complete { length, .. }) = parsed {
                    assert_eq!(length, end, "told late, or more taken than was there");
                }
                decided = Some(parsed);
            }
            (Some(decided), _) => assert_eq!(*decided, parsed, "changed its mind at byte {end}"),
        }
    }
    if let Some(decided) = decided {
        assert_eq!(parse(input), decided);
        if let Ok(ParsedHeader::Complete { header: ProxyHeader::Proxied { source, destination }, .. }) =
            decided
        {
            for address in [source, destination] {
                assert_eq!(address.ip(), address.ip().to_canonical(), "an IPv4 address in disguise");
            }
        }
    }
}
