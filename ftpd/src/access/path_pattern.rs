//! Patterns of virtual paths: which paths they match, and which they could match below a directory.
//!
//! A pattern matches a path and everything below it. Matching descends a path component by component
//! and keeps the set of pattern parts that the next component could match. It therefore takes at most
//! (parts × components) steps, regardless of the number of `**`.

use crate::{protocol::glob::Pattern, virtual_path::VirtualPath};

/// A compiled pattern. Names are compared byte by byte.
#[derive(Clone, Debug)]
pub(crate) struct PathPattern(Vec<PatternPart>);

#[derive(Clone, Debug)]
enum PatternPart {
    /// `**`: any number of directories.
    AnyDepth,
    Name(Pattern),
}

/// State of a pattern at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MatchState {
    /// The pattern matches the path, and so everything below it.
    Matched,
    /// Indexes of the parts that an entry of the directory could match. Empty if nothing below can
    /// match.
    Pending(Vec<usize>),
}

impl PathPattern {
    /// Compiles a pattern. Every text is valid; adjacent slashes count as one.
    pub(crate) fn parse(pattern: &str) -> Self {
        let mut parts = Vec::new();
        for part in pattern.split('/').filter(|part| !part.is_empty()) {
            match (part, parts.last()) {
                // `**/**` is the same as `**`.
                ("**", Some(PatternPart::AnyDepth)) => {}
                ("**", _) => parts.push(PatternPart::AnyDepth),
                _ => parts.push(PatternPart::Name(Pattern::parse(part.as_bytes()))),
            }
        }
        Self(parts)
    }

    /// State at the root.
    pub(super) fn start(&self) -> MatchState {
        if self.ends_at(0) {
            return MatchState::Matched;
        }
        let mut pending = Vec::new();
        self.enter(0, &mut pending);
        MatchState::Pending(pending)
    }

    /// State at `path`.
    pub(crate) fn at(&self, path: &VirtualPath) -> MatchState {
        path.names().fold(self.start(), |state, name| self.below(&state, name))
    }

    /// State at the entry `name` of the directory with the state `state`.
    pub(super) fn below(&self, state: &MatchState, name: &[u8]) -> MatchState {
        let MatchState::Pending(pending) = state else {
            return MatchState::Matched;
        };
        let mut next = Vec::new();
        for &part in pending {
            match &self.0[part] {
                PatternPart::AnyDepth => self.enter(part, &mut next),
                PatternPart::Name(pattern) if pattern.matches(name) => {
                    if self.ends_at(part + 1) {
                        return MatchState::Matched;
                    }
                    self.enter(part + 1, &mut next);
                }
                PatternPart::Name(_) => {}
            }
        }
        next.sort_unstable();
        next.dedup();
        MatchState::Pending(next)
    }

    /// Returns true if [`PathPattern::below`] would return [`MatchState::Matched`]. Allocates nothing.
    pub(super) fn matches_below(&self, state: &MatchState, name: &[u8]) -> bool {
        match state {
            MatchState::Matched => true,
            MatchState::Pending(pending) => pending.iter().any(|part| match &self.0[*part] {
                PatternPart::Name(pattern) => self.ends_at(part + 1) && pattern.matches(name),
                PatternPart::AnyDepth => false,
            }),
        }
    }

    /// Returns true if the pattern can match an entry of the directory.
    pub(super) fn may_match_entry(&self, state: &MatchState) -> bool {
        match state {
            MatchState::Matched => true,
            MatchState::Pending(pending) => pending
                .iter()
                .any(|part| matches!(self.0[*part], PatternPart::Name(_)) && self.ends_at(part + 1)),
        }
    }

    /// Returns true if the pattern ends at `part`, or only `**` remains, which also matches zero
    /// components.
    fn ends_at(&self, part: usize) -> bool {
        matches!(self.0[part..], [] | [PatternPart::AnyDepth])
    }

    /// Adds the parts that the next component could match at `part`, which must not be the end.
    fn enter(&self, part: usize, pending: &mut Vec<usize>) {
        debug_assert!(!self.ends_at(part), "a pattern that ends here has matched");
        pending.push(part);
        if matches!(self.0[part], PatternPart::AnyDepth) {
            // `**` also matches zero components. A part follows it, because the caller has excluded the
            // end.
            pending.push(part + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> VirtualPath {
        VirtualPath::root().join(text.as_bytes()).unwrap()
    }

    fn matches(pattern: &str, at: &str) -> bool {
        PathPattern::parse(pattern).at(&path(at)) == MatchState::Matched
    }

    #[test]
    fn pattern_matches_a_path_and_everything_below() {
        for (pattern, at, expected) in [
            ("/", "/", true),
            ("/", "/a/b", true),
            ("/incoming", "/incoming", true),
            ("/incoming", "/incoming/a/b", true),
            ("/incoming", "/", false),
            ("/incoming", "/incoming2", false),
            ("/incoming", "/Incoming", false),
            ("/a/incoming", "/incoming", false),
            ("/partners/*/out", "/partners/acme/out/x", true),
            ("/partners/*/out", "/partners/acme", false),
            ("/partners/*/out", "/partners/acme/more/out", false),
            ("/partners/**/out", "/partners/out", true),
            ("/partners/**/out", "/partners/a/b/out/c", true),
            ("/partners/**/out", "/partners/a/b", false),
            ("/**", "/", true),
            ("/a/**", "/a", true),
            ("/a/**", "/b", false),
            ("/**/**/x", "/x", true),
            ("/**/*.csv", "/a/b.csv", true),
            ("//a//b/", "/a/b", true),
            ("/[a-c]?", "/bx/y", true),
        ] {
            assert_eq!(matches(pattern, at), expected, "{pattern} at {at}");
        }
    }

    #[test]
    fn state_tells_if_an_entry_or_a_deeper_path_can_match() {
        let below = |pattern: &str, at: &str| {
            let tree = PathPattern::parse(pattern);
            let state = tree.at(&path(at));
            (tree.may_match_entry(&state), state != MatchState::Pending(vec![]))
        };
        for (pattern, at, name, anything) in [
            ("/a/b/c", "/", false, true),
            ("/a/b/c", "/a/b", true, true),
            ("/a/b/c", "/b", false, false),
            ("/**/c", "/x/y", true, true),
            ("/a/**/c/d", "/a", false, true),
            ("/a", "/a/b", true, true),
        ] {
            assert_eq!(below(pattern, at), (name, anything), "{pattern} at {at}");
        }
    }

    #[test]
    fn many_double_stars_do_not_take_exponential_time() {
        let tree = PathPattern::parse(&"/**/*a*".repeat(140));
        let deep = path(&"/aaaaaaaa".repeat(139));
        let start = std::time::Instant::now();
        assert_ne!(tree.at(&deep), MatchState::Matched);
        assert!(start.elapsed().as_secs() < 10);
    }

    /// The definition of a match, by exhaustive search.
    fn reference(parts: &[&str], names: &[&str]) -> bool {
        match parts {
            [] => true,
            ["**", rest @ ..] => (0..=names.len()).any(|n| reference(rest, &names[n..])),
            [part, rest @ ..] => names.split_first().is_some_and(|(name, below)| {
                Pattern::parse(part.as_bytes()).matches(name.as_bytes()) && reference(rest, below)
            }),
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_plain_recursion(
            parts in proptest::collection::vec("\\*\\*|[ab*?]{1,2}", 0..6),
            names in proptest::collection::vec("[ab]{1,2}", 0..6),
        ) {
            let (parts, names): (Vec<_>, Vec<_>) =
                (parts.iter().map(String::as_str).collect(), names.iter().map(String::as_str).collect());
            let tree = PathPattern::parse(&format!("/{}", parts.join("/")));
            let expected = reference(&parts, &names);
            prop_assert_eq!(tree.at(&path(&names.join("/"))) == MatchState::Matched, expected);
            if let Some((name, above)) = names.split_last() {
                let state = tree.at(&path(&above.join("/")));
                prop_assert_eq!(tree.matches_below(&state, name.as_bytes()), expected);
                if expected {
                    prop_assert!(tree.may_match_entry(&state));
                }
                // Every directory above a match could still match.
                if expected {
                    for n in 0..names.len() {
                        prop_assert_ne!(tree.at(&path(&names[..n].join("/"))), MatchState::Pending(vec![]));
                    }
                }
            }
        }
    }
}
