//! The facts of MLST and MLSD, and their selection with OPTS MLST (RFC 3659 section 7).

/// A fact that MLST and MLSD show of an entry (RFC 3659 section 7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    Type,
    Size,
    Modify,
    Perm,
    Unique,
    UnixMode,
}

impl Fact {
    const ALL: [Self; 6] = [Self::Type, Self::Size, Self::Modify, Self::Perm, Self::Unique, Self::UnixMode];

    /// The name in FEAT, OPTS MLST and listings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Size => "size",
            Self::Modify => "modify",
            Self::Perm => "perm",
            Self::Unique => "unique",
            Self::UnixMode => "UNIX.mode",
        }
    }
}

/// The facts that MLSD and MLST show in a session. All, until OPTS MLST selects some.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Facts(u8);

impl Facts {
    /// Parses the argument of OPTS MLST: names, each followed by `;`. Unknown names are skipped (RFC
    /// 3659 section 7.9).
    pub fn parse(argument: &[u8]) -> Self {
        let known = |name: &[u8]| {
            Fact::ALL.into_iter().find(|fact| fact.name().as_bytes().eq_ignore_ascii_case(name))
        };
        let names = argument.split(|b| *b == b';').map(<[u8]>::trim_ascii);
        Self(names.filter_map(known).fold(0, |bits, fact| bits | 1 << fact as u8))
    }

    pub fn contains(self, fact: Fact) -> bool {
        self.0 & 1 << fact as u8 != 0
    }

    /// The selected facts in the order in which listings show them.
    pub fn iter(self) -> impl Iterator<Item = Fact> {
        Fact::ALL.into_iter().filter(move |fact| self.contains(*fact))
    }

    /// The FEAT line: all facts. The selected ones have a star (RFC 3659 section 7.8).
    pub fn feature(self) -> String {
        let mut line = String::from("MLST ");
        for fact in Fact::ALL {
            line.push_str(fact.name());
            line.push_str(if self.contains(fact) { "*;" } else { ";" });
        }
        line
    }

    /// The text of the reply 200 to OPTS MLST (RFC 3659 section 7.9).
    pub fn accepted(self) -> String {
        let mut line = String::from("MLST OPTS");
        for (i, fact) in self.iter().enumerate() {
            line.push_str(if i == 0 { " " } else { "" });
            line.push_str(fact.name());
            line.push(';');
        }
        line
    }
}

impl Default for Facts {
    fn default() -> Self {
        Self(Fact::ALL.into_iter().fold(0, |bits, fact| bits | 1 << fact as u8))
    }
}

impl std::fmt::Debug for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selected_facts_have_a_star_in_feat_and_are_named_by_opts_rfc_3659_7_9() {
        let all = Facts::default();
        assert_eq!(all.feature(), "MLST type*;size*;modify*;perm*;unique*;UNIX.mode*;");
        let some = Facts::parse(b"Size;unix.MODE;lang;type");
        assert_eq!(some.feature(), "MLST type*;size*;modify;perm;unique;UNIX.mode*;");
        assert_eq!(some.accepted(), "MLST OPTS type;size;UNIX.mode;");
        assert_eq!(Facts::parse(b"").accepted(), "MLST OPTS");
    }
}
