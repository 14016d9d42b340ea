//! Patterns of places in a tree: which paths they fit, and where below a path they could.
//!
//! A pattern fits what it matches and everything below. Matching goes down a path name by name and
//! holds the parts that the next name could match, so it takes at most parts times names steps,
//! however many `**` there are.

use crate::{protocol::glob::Pattern, virtual_path::VirtualPath};

/// A pattern, ready to match. Names are compared byte by byte.
#[derive(Clone, Debug)]
pub struct PathPattern(Vec<PatternPart>);

#[derive(Clone, Debug)]
enum PatternPart {
    /// `**`: any number of directories.
    AnyDepth,
    Name(Pattern),
}

/// How a pattern stands to a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MatchState {
    /// It fits, and so it does everything below.
    Matched,
    /// The parts that a name in the directory is to match; none, if nothing below can fit.
    Pending(Vec<usize>),
}

impl PathPattern {
    /// Every text is a pattern; slashes next to each other are one.
    pub fn parse(pattern: &str) -> Self {
        let mut parts = Vec::new();
        for part in pattern.split('/').filter(|part| !part.is_empty()) {
            match (part, parts.last()) {
                // Twice any number is any number.
                ("**", Some(PatternPart::AnyDepth)) => {}
                ("**", _) => parts.push(PatternPart::AnyDepth),
                _ => parts.push(PatternPart::Name(Pattern::parse(part.as_bytes()))),
            }
        }
        Self(parts)
    }

    /// At the root.
    pub fn start(&self) -> MatchState {
        if self.ends_at(0) {
            return MatchState::Matched;
        }
        let mut pending = Vec::new();
        self.enter(0, &mut pending);
        MatchState::Pending(pending)
    }

    /// At `path`.
    pub fn at(&self, path: &VirtualPath) -> MatchState {
        path.names().fold(self.start(), |state, name| self.below(&state, name))
    }

    /// At `name` in the directory that `state` is of.
    pub fn below(&self, state: &MatchState, name: &[u8]) -> MatchState {
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

    /// Whether [`PathPattern::below`] would be [`MatchState::Matched`]; allocates nothing.
    pub fn matches_below(&self, state: &MatchState, name: &[u8]) -> bool {
        match state {
            MatchState::Matched => true,
            MatchState::Pending(pending) => pending.iter().any(|part| match &self.0[*part] {
                PatternPart::Name(pattern) => self.ends_at(part + 1) && pattern.matches(name),
                PatternPart::AnyDepth => false,
            }),
        }
    }

    /// Whether there can be a name in the directory that the pattern fits.
    pub fn may_match_entry(&self, state: &MatchState) -> bool {
        match state {
            MatchState::Matched => true,
            MatchState::Pending(pending) => pending
                .iter()
                .any(|part| matches!(self.0[*part], PatternPart::Name(_)) && self.ends_at(part + 1)),
        }
    }

    /// Whether nothing more than `**`, which may be none, comes from `part` on.
    fn ends_at(&self, part: usize) -> bool {
        matches!(self.0[part..], [] | [PatternPart::AnyDepth])
    }

    /// Adds the parts that the next name can match where `part` is the next. It is not the end.
    fn enter(&self, part: usize, pending: &mut Vec<usize>) {
        pending.push(part);
        if matches!(self.0[part], PatternPart::AnyDepth) {
            // A part behind `**`, or the end, which the caller has excluded.
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

    fn fits(pattern: &str, at: &str) -> bool {
        PathPattern::parse(pattern).at(&path(at)) == MatchState::Matched
    }

    #[test]
    fn a_pattern_fits_what_it_matches_and_everything_below() {
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
            assert_eq!(fits(pattern, at), expected, "{pattern} at {at}");
        }
    }

    #[test]
    fn what_can_fit_further_down_is_known() {
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
    fn many_depths_take_no_exponential_time() {
        let tree = PathPattern::parse(&"/**/*a*".repeat(140));
        let deep = path(&"/aaaaaaaa".repeat(139));
        let start = std::time::Instant::now();
        assert_ne!(tree.at(&deep), MatchState::Matched);
        assert!(start.elapsed().as_secs() < 10);
    }

    /// The definition, tried in every way.
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
                // What fits further down was possible all the way.
                if expected {
                    for n in 0..names.len() {
                        prop_assert_ne!(tree.at(&path(&names[..n].join("/"))), MatchState::Pending(vec![]));
                    }
                }
            }
        }
    }
}
