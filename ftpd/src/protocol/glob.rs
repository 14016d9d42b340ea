//! File name patterns: `*`, `?`, `[a-z]`, `[!a-z]`, and `\` to escape them.
//!
//! Braces are not supported: they expand exponentially (CVE-2011-0418). Matching takes at most
//! (pattern length × name length) steps and no recursion, for any pattern.

/// A pattern for one name. `*` and `?` match any byte, also a leading dot. Listings call
/// [`Pattern::asks_for_hidden`] to hide names with a leading dot; access rules do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    tokens: Vec<Token>,
    case: CaseRule,
}

/// Comparison of ASCII letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CaseRule {
    Sensitive,
    Insensitive,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`: one byte.
    One,
    /// `*`: any number of bytes.
    Any,
    /// `[…]`: one byte in these inclusive ranges.
    Class {
        negated: bool,
        ranges: Vec<(u8, u8)>,
    },
}

/// Returns true if the name contains `*`, `?` or `[` that `\` does not escape.
pub fn has_wildcards(name: &[u8]) -> bool {
    let mut bytes = name.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' | b'?' | b'[' => return true,
            b'\\' => _ = bytes.next(),
            _ => {}
        }
    }
    false
}

impl Pattern {
    /// Parses any byte string. A `[` without `]` and a `\` at the end are ordinary bytes.
    pub fn parse(mut pattern: &[u8]) -> Self {
        let mut tokens = Vec::new();
        while let Some((byte, rest)) = pattern.split_first() {
            pattern = rest;
            let token = match (byte, rest) {
                (b'\\', [escaped, after @ ..]) => {
                    pattern = after;
                    Token::Byte(*escaped)
                }
                // `**` is the same as `*`.
                (b'*', _) if tokens.last() == Some(&Token::Any) => continue,
                (b'*', _) => Token::Any,
                (b'?', _) => Token::One,
                (b'[', _) => match class(rest) {
                    Some((class, after)) => {
                        pattern = after;
                        class
                    }
                    None => Token::Byte(b'['),
                },
                _ => Token::Byte(*byte),
            };
            tokens.push(token);
        }
        Self { tokens, case: CaseRule::Sensitive }
    }

    /// Same as [`Pattern::parse`], but ASCII letters match in either case.
    pub fn parse_ignoring_case(pattern: &[u8]) -> Self {
        Self { case: CaseRule::Insensitive, ..Self::parse(pattern) }
    }

    /// Returns true if the pattern begins with a dot. In listings, only such a pattern matches hidden
    /// names, as in a shell (POSIX 2.13.3), so that a client's `mdelete *` spares `.htaccess`.
    pub fn asks_for_hidden(&self) -> bool {
        self.tokens.first() == Some(&Token::Byte(b'.'))
    }

    pub fn matches(&self, name: &[u8]) -> bool {
        let (mut token, mut at) = (0, 0);
        // The last `*` seen: its token, and the end of its match in the name. On a mismatch it is enough
        // to extend the match of this star: it can absorb everything that an earlier star could.
        let mut star = None;
        while at < name.len() {
            match self.tokens.get(token) {
                Some(Token::Any) => {
                    star = Some((token, at));
                    token += 1;
                    continue;
                }
                Some(one) if one.matches(name[at], self.case) => {
                    token += 1;
                    at += 1;
                    continue;
                }
                _ => {}
            }
            let Some((after, from)) = &mut star else { return false };
            *from += 1;
            (token, at) = (*after + 1, *from);
        }
        self.tokens[token..].iter().all(|token| *token == Token::Any)
    }
}

impl Token {
    fn matches(&self, byte: u8, case: CaseRule) -> bool {
        match (self, case) {
            (Self::One | Self::Any, _) => true,
            (Self::Byte(own), CaseRule::Sensitive) => *own == byte,
            (Self::Byte(own), CaseRule::Insensitive) => own.eq_ignore_ascii_case(&byte),
            (Self::Class { negated, ranges }, case) => {
                let contains = |byte: u8| ranges.iter().any(|(from, to)| (*from..=*to).contains(&byte));
                let is_member = match case {
                    CaseRule::Sensitive => contains(byte),
                    CaseRule::Insensitive => {
                        contains(byte.to_ascii_lowercase()) || contains(byte.to_ascii_uppercase())
                    }
                };
                is_member != *negated
            }
        }
    }
}

/// Parses a class after its `[`. Returns the class and the text after its `]`. A leading `]` is a member.
fn class(text: &[u8]) -> Option<(Token, &[u8])> {
    let (negated, mut text) = match text {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let mut ranges = Vec::new();
    loop {
        text = match text {
            [b']', rest @ ..] if !ranges.is_empty() => return Some((Token::Class { negated, ranges }, rest)),
            [from, b'-', to, rest @ ..] if *to != b']' => {
                ranges.push((*from, *to));
                rest
            }
            [byte, rest @ ..] => {
                ranges.push((*byte, *byte));
                rest
            }
            [] => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_have_the_meaning_of_the_shell() {
        for (pattern, name, matches) in [
            ("*.txt", "a.txt", true),
            ("*.txt", ".txt", true),
            ("*.txt", "a.txt.gz", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[^a-c]x", "dx", true),
            ("[]a]", "]", true),
            ("[a-]", "-", true),
            ("[a", "[a", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a\\", "a\\", true),
            ("{a,b}", "a", false),
            ("*a*b*c", "xxaxxbxxc", true),
            ("", "", true),
            ("", "a", false),
        ] {
            let parsed = Pattern::parse(pattern.as_bytes());
            assert_eq!(parsed.matches(name.as_bytes()), matches, "{pattern} on {name}");
        }
    }

    #[test]
    fn case_is_ignored_only_on_request() {
        for (pattern, name, matches) in [
            ("*.exe", "SETUP.Exe", true),
            ("[a-c]?", "Bx", true),
            ("[A-C]?", "bx", true),
            ("[!a]", "A", false),
            ("[!a]", "b", true),
            ("\\*.EXE", "*.exe", true),
            ("\u{c4}", "\u{e4}", false),
        ] {
            let parsed = Pattern::parse_ignoring_case(pattern.as_bytes());
            assert_eq!(parsed.matches(name.as_bytes()), matches, "{pattern} on {name}");
        }
        assert!(!Pattern::parse(b"*.exe").matches(b"a.EXE"));
    }

    #[test]
    fn only_a_leading_dot_asks_for_hidden_names() {
        for (pattern, asks) in [
            (".*", true),
            ("\\.*", true),
            ("..", true),
            ("*", false),
            ("?x", false),
            ("[.]*", false),
            ("", false),
        ] {
            assert_eq!(Pattern::parse(pattern.as_bytes()).asks_for_hidden(), asks, "{pattern}");
        }
    }

    #[test]
    fn an_escaped_wildcard_is_not_a_wildcard() {
        assert!(has_wildcards(b"a*") && has_wildcards(b"\\\\?") && has_wildcards(b"[x"));
        assert!(!has_wildcards(b"a\\*b\\[c\\?") && !has_wildcards(b"a\\"));
    }

    #[test]
    fn many_stars_do_not_take_exponential_time_cve_2011_0762() {
        let pattern = Pattern::parse(&b"*a".repeat(4000));
        let name = b"a".repeat(255);
        let start = std::time::Instant::now();
        for _ in 0..100 {
            assert!(!pattern.matches(&name));
        }
        assert!(start.elapsed().as_secs() < 10);
    }

    fn reference(pattern: &[Token], name: &[u8]) -> bool {
        match pattern {
            [] => name.is_empty(),
            [Token::Any, rest @ ..] => (0..=name.len()).any(|n| reference(rest, &name[n..])),
            [token, rest @ ..] => {
                name.first().is_some_and(|b| token.matches(*b, CaseRule::Sensitive))
                    && reference(rest, &name[1..])
            }
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_a_recursive_reference(
            pattern in "[ab*?!\\[\\]\\\\-]{0,10}",
            name in "[ab*\\[\\]!-]{0,8}",
        ) {
            let pattern = Pattern::parse(pattern.as_bytes());
            prop_assert_eq!(pattern.matches(name.as_bytes()), reference(&pattern.tokens, name.as_bytes()));
        }

        #[test]
        fn no_pattern_causes_a_panic(pattern: Vec<u8>, name: Vec<u8>) {
            Pattern::parse(&pattern).matches(&name);
        }

        #[test]
        fn a_name_without_wildcards_matches_itself(name in "[a-z.-]{0,20}") {
            prop_assert!(Pattern::parse(name.as_bytes()).matches(name.as_bytes()));
        }
    }
}
