//! Property of the PROXY header of a balancer, and of a relay.

use std::sync::LazyLock;

use common::{node::NodeName, registry::SharedKey};
use ftpd::protocol::{
    proxy::{MAX_HEADER, ParsedHeader, ProxyHeader, parse},
    relayed::{Relayed, seal, verify},
};

/// A node and its keys, and a valid header of a relay.
struct ValidHeader {
    own: NodeName,
    keys: [SharedKey; 2],
    relayed: Relayed,
    header: Vec<u8>,
}

/// The time of the header in ms.
const NOW: u64 = 1_700_000_000_000;

static VALID: LazyLock<ValidHeader> = LazyLock::new(|| {
    let keys = [SharedKey::random(2), SharedKey::random(1)];
    let own: NodeName = "ftp-1".parse().expect("a valid name");
    let [client, reached] = ["192.0.2.1:40000", "198.51.100.1:50007"];
    let address = |text: &str| text.parse().expect("a valid address");
    let relayed = Relayed { client: address(client), reached: address(reached), port: 50_007 };
    let header = seal(&relayed, &own, &keys[1], NOW);
    ValidHeader { own, keys, relayed, header }
});

/// Property of a PROXY header and the bytes that follow it: a result for the first bytes does not
/// change when more bytes arrive.
///
/// * Bytes after a complete header do not change the header.
/// * An invalid header stays invalid.
/// * The parser decides after at most [`MAX_HEADER`] bytes.
/// * A node takes no connection for a relayed one without the cluster's key: neither with the input as the
///   header, nor with a valid header that the input changes.
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
    relayed_header(input);
}

fn relayed_header(input: &[u8]) {
    let ValidHeader { own, keys, relayed, header } = &*VALID;
    let accepted = |header: &[u8]| verify(header, own, relayed.port, keys, NOW).ok().flatten();
    assert_eq!(accepted(&[header, input].concat()), Some(*relayed));
    assert_eq!(accepted(input), None);
    let mut changed = header.clone();
    for (byte, change) in changed.iter_mut().zip(input) {
        *byte ^= change;
    }
    assert_eq!(accepted(&changed).is_some(), changed == *header);
    // The TLV of the valid header in a header that the input begins.
    let tlv = &header[header.len() - 62..];
    let with_tlv = [input, tlv].concat();
    assert_eq!(accepted(&with_tlv).is_some(), with_tlv.starts_with(header));
}
