//! The PROXY header of a balancer.

use ftpd::protocol::proxy::{Header, MAX_HEADER, Parsed, parse};

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
            (None, Ok(Parsed::Incomplete)) => assert!(end < MAX_HEADER, "still waiting after {end} bytes"),
            (None, _) => {
                if let Ok(Parsed::Complete { length, .. }) = parsed {
                    assert_eq!(length, end, "told late, or more taken than was there");
                }
                decided = Some(parsed);
            }
            (Some(decided), _) => assert_eq!(*decided, parsed, "changed its mind at byte {end}"),
        }
    }
    if let Some(decided) = decided {
        assert_eq!(parse(input), decided);
        if let Ok(Parsed::Complete { header: Header::Proxied { source, destination }, .. }) = decided {
            for address in [source, destination] {
                assert_eq!(address.ip(), address.ip().to_canonical(), "an IPv4 address in disguise");
            }
        }
    }
}
