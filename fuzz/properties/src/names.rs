//! Properties of file names: glob patterns, listing lines and time values.

use std::time::{Duration, Instant};

use common::policy::Permissions;
use ftpd::{
    listing::{
        Entry, EntryKind,
        machine::{self, EntryRole},
        names, unix,
    },
    protocol::{
        facts::Facts,
        glob::{Pattern, has_wildcards},
        timestamp,
    },
};

/// Time limit of one match. A match takes microseconds; the margin is for busy machines.
const MATCH_LIMIT: Duration = Duration::from_secs(2);

/// Property of glob patterns and listing lines. The input holds a pattern, a name, a link target and
/// numbers, separated by NUL, which no name contains.
///
/// * A match ends within 2 s, and its result agrees with a simple implementation.
/// * A name matches itself as a pattern if all its bytes are escaped.
/// * A listing line is one line with the complete name at its end.
pub fn glob_and_listing(input: &[u8]) {
    let mut parts = input.splitn(4, |b| *b == 0);
    let mut next = || parts.next().unwrap_or_default();
    let (pattern, name, target, numbers) = (next(), next(), next(), next());
    check_match(pattern, name);
    check_listing_lines(name, target, numbers);
    // Any argument of OPTS MLST is accepted.
    assert!(Facts::parse(target).accepted().starts_with("MLST OPTS"));
}

fn check_match(pattern: &[u8], name: &[u8]) {
    let started = Instant::now();
    let parsed = Pattern::parse(pattern);
    let matched = parsed.matches(name);
    assert!(started.elapsed() < MATCH_LIMIT, "the match took {:?}", started.elapsed());
    if pattern.len() * name.len() <= 1 << 16 {
        assert_eq!(matched, matches_by_definition(pattern, name));
    }
    let escaped: Vec<u8> = name.iter().flat_map(|b| [b'\\', *b]).collect();
    assert!(Pattern::parse(&escaped).matches(name) && !has_wildcards(&escaped));
    assert!(Pattern::parse(b"*").matches(name));
    if !has_wildcards(pattern) && !pattern.contains(&b'\\') {
        assert_eq!(matched, pattern == name);
    }
}

/// An element of a pattern.
enum Element {
    /// Matches any number of bytes.
    Any,
    /// Matches one byte of a set.
    One(Box<[bool; 256]>),
}

/// Returns true if the pattern matches the name. This simple implementation computes, for each element
/// of the pattern, all positions of the name that the elements so far can reach.
fn matches_by_definition(mut pattern: &[u8], name: &[u8]) -> bool {
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    while !pattern.is_empty() {
        let (element, rest) = element(pattern);
        pattern = rest;
        let mut next = vec![false; name.len() + 1];
        match element {
            Element::Any => {
                let first = reached.iter().position(|r| *r).unwrap_or(next.len());
                next[first..].fill(true);
            }
            Element::One(set) => {
                for at in 0..name.len() {
                    next[at + 1] = reached[at] && set[usize::from(name[at])];
                }
            }
        }
        reached = next;
    }
    reached[name.len()]
}

/// Splits off the first element of a pattern.
fn element(pattern: &[u8]) -> (Element, &[u8]) {
    let mut set = Box::new([false; 256]);
    let rest = match pattern {
        [b'*', rest @ ..] => return (Element::Any, rest),
        [b'?', rest @ ..] => {
            set.fill(true);
            rest
        }
        [b'\\', byte, rest @ ..] => {
            set[usize::from(*byte)] = true;
            rest
        }
        [b'[', inside @ ..] => {
            let negated = matches!(inside, [b'!' | b'^', ..]);
            let members = &inside[usize::from(negated)..];
            // A `]` in the first position is a member of the set.
            match members.iter().skip(1).position(|b| *b == b']') {
                Some(end) => {
                    fill(&members[..=end], &mut set);
                    if negated {
                        set.iter_mut().for_each(|member| *member = !*member);
                    }
                    &members[end + 2..]
                }
                None => {
                    set[usize::from(b'[')] = true;
                    inside
                }
            }
        }
        [byte, rest @ ..] => {
            set[usize::from(*byte)] = true;
            rest
        }
        [] => &[],
    };
    (Element::One(set), rest)
}

/// Adds the bytes and ranges of a bracket expression to `set`.
fn fill(members: &[u8], set: &mut [bool; 256]) {
    let mut at = 0;
    while at < members.len() {
        let (from, to) = match members[at..] {
            [from, b'-', to, ..] => {
                at += 3;
                (from, to)
            }
            _ => {
                at += 1;
                (members[at - 1], members[at - 1])
            }
        };
        for byte in from..=to {
            set[usize::from(byte)] = true;
        }
    }
}

fn check_listing_lines(name: &[u8], target: &[u8], numbers: &[u8]) {
    let number = |at: usize| {
        let mut bytes = [0; 8];
        for (byte, given) in bytes.iter_mut().zip(numbers.iter().skip(8 * at)) {
            *byte = *given;
        }
        u64::from_le_bytes(bytes)
    };
    let kinds = [EntryKind::File, EntryKind::Directory, EntryKind::Symlink, EntryKind::Other];
    let entry = Entry {
        name: name.to_vec(),
        kind: kinds[(number(0) % 4) as usize],
        size: number(1),
        modified: number(2).cast_signed(),
        mode: number(3) as u32,
        links: number(4),
        device: number(5),
        inode: number(6),
        link_target: (!target.is_empty()).then(|| target.to_vec()),
    };
    for classify in [false, true] {
        let mut out = Vec::new();
        unix::line(&entry, number(7).cast_signed(), classify, &mut out);
        one_line(&out);
        let mut out = Vec::new();
        names::line(target, &entry, classify, &mut out);
        one_line(&out);
    }
    for role in [EntryRole::Member, EntryRole::Listed, EntryRole::Parent] {
        let mut out = Vec::new();
        machine::line(Facts::default(), &entry, role, &Permissions::default(), &mut out);
        let line = one_line(&out);
        // The complete name follows the first space (RFC 3659 section 7.2).
        let space = line.iter().position(|b| *b == b' ').expect("a space precedes the name");
        assert_eq!(line.len() - space - 1, name.len());
        assert!(line[..space].ends_with(b";"), "{}", line.escape_ascii());
    }
}

/// Returns the only line of `out`, without CRLF.
fn one_line(out: &[u8]) -> &[u8] {
    let line = out.strip_suffix(b"\r\n").expect("a line ends with CRLF");
    assert!(!line.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)), "{}", line.escape_ascii());
    line
}

/// Property of time values (RFC 3659 section 2.3): formatting a parsed value gives the same text.
pub fn timestamp(input: &[u8]) {
    let Some(seconds) = timestamp::parse(input) else { return };
    let mut out = Vec::new();
    timestamp::format(seconds, &mut out);
    assert_eq!(timestamp::parse(&out), Some(seconds));
    // A leap second is formatted as the second before it.
    if &input[12..14] != b"60" {
        assert_eq!(out, &input[..14]);
    }
}
