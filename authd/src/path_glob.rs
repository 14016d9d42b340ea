//! Patterns of paths: `*` and `?` within a component, `**` over components.

/// A pattern such as `/reports/**`.
#[derive(Clone, Debug)]
pub(crate) struct PathGlob(Vec<GlobPart>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GlobPart {
    Literal(char),
    /// `?`: any character but `/`.
    One,
    /// `*`: any number of characters but `/`.
    Component,
    /// `**`: any number of characters.
    Everything,
}

impl PathGlob {
    pub(crate) fn new(pattern: &str) -> Self {
        let mut parts = Vec::new();
        for c in pattern.chars() {
            let part = match c {
                '?' => GlobPart::One,
                '*' => GlobPart::Component,
                c => GlobPart::Literal(c),
            };
            match (parts.last_mut(), part) {
                (Some(last @ (GlobPart::Component | GlobPart::Everything)), GlobPart::Component) => {
                    *last = GlobPart::Everything;
                }
                _ => parts.push(part),
            }
        }
        Self(parts)
    }

    /// Takes time in proportion to the lengths of path and pattern, whatever the pattern is.
    pub(crate) fn matches(&self, path: &str) -> bool {
        // The positions in the pattern that the characters so far can lead to, as in a simulation of an NFA.
        let mut places = vec![false; self.0.len() + 1];
        places[0] = true;
        self.skip_stars(&mut places);
        for c in path.chars() {
            let mut next = vec![false; places.len()];
            for (at, part) in self.0.iter().enumerate().filter(|(at, _)| places[*at]) {
                match part {
                    GlobPart::Literal(literal) => next[at + 1] |= *literal == c,
                    GlobPart::One => next[at + 1] |= c != '/',
                    GlobPart::Component => next[at] |= c != '/',
                    GlobPart::Everything => next[at] = true,
                }
            }
            self.skip_stars(&mut next);
            places = next;
        }
        places[self.0.len()]
    }

    /// A star matches nothing, too.
    fn skip_stars(&self, places: &mut [bool]) {
        for (at, part) in self.0.iter().enumerate() {
            if matches!(part, GlobPart::Component | GlobPart::Everything) && places[at] {
                places[at + 1] = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stay_within_a_component_unless_doubled() {
        for (pattern, path, expected) in [
            ("/a/b", "/a/b", true),
            ("/a/b", "/a/bc", false),
            ("/a", "/a/b", false),
            ("/a/*", "/a/b", true),
            ("/a/*", "/a/b/c", false),
            ("/a/*", "/a/", true),
            ("/a/**", "/a/b/c", true),
            ("/a/**", "/a", false),
            ("/**/x.csv", "/a/b/x.csv", true),
            ("/**/x.csv", "/x.csv", false),
            ("/**x.csv", "/x.csv", true),
            ("**", "/anything/at all", true),
            ("*.csv", "/a.csv", false),
            ("/q?.csv", "/q3.csv", true),
            ("/q?.csv", "/q/.csv", false),
            ("/ü*", "/übung", true),
            ("/a***b", "/a/x/b", true),
            ("", "", true),
            ("", "/", false),
        ] {
            assert_eq!(PathGlob::new(pattern).matches(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_long_time() {
        let path = "a".repeat(4000);
        assert!(!PathGlob::new(&"*a".repeat(500)).matches(&(path + "/")));
    }
}
