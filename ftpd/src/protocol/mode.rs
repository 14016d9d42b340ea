//! File modes in the syntax of chmod(1): `640`, `u+x`, `go-w,a+r`, `u=rw,g=u`.

use super::arguments::ArgumentError;

/// A change of permission bits by SITE CHMOD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModeChange {
    /// Sets this mode, at most 0o7777.
    To(u32),
    /// Applies these steps in order.
    Steps(Vec<ModeStep>),
}

/// One action of a symbolic mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeStep {
    operator: Operator,
    /// Mask of the bits that `u`, `g`, `o` and `a` select. Without a letter all nine bits: the umask, which
    /// chmod(1) applies then, is not applied.
    who: u32,
    /// `r`, `w` and `x` as one octal digit.
    bits: u32,
    /// `X`: sets `x` on directories and on files that have any `x`.
    execute_if_any: bool,
    /// `g=u`: right shift, in bits, of the octal digit to copy.
    copied: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Add,
    Remove,
    Set,
}

/// Multiplying by this copies an octal digit to user, group and others.
const EACH_DIGIT: u32 = 0o111;

/// The `x` bits of user, group and others.
const EXECUTE: u32 = 0o111;

impl ModeChange {
    /// Parses an octal number, or symbolic clauses separated by commas (POSIX chmod).
    ///
    /// # Errors
    /// The text has neither form.
    pub(super) fn parse(text: &[u8]) -> Result<Self, ArgumentError> {
        if text.first().is_some_and(u8::is_ascii_digit) {
            let mode = text.iter().try_fold(0u32, |mode, byte| {
                let digit = matches!(byte, b'0'..=b'7').then(|| u32::from(byte - b'0'))?;
                Some(mode * 8 + digit).filter(|mode| *mode <= 0o7777)
            });
            return mode.map(Self::To).ok_or(ArgumentError::Syntax);
        }
        let mut steps = Vec::new();
        for clause in text.split(|byte| *byte == b',') {
            clause_steps(clause, &mut steps).ok_or(ArgumentError::Syntax)?;
        }
        Ok(Self::Steps(steps))
    }

    /// The changed mode. Only the nine bits of user, group and others have a meaning.
    pub fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        match self {
            Self::To(mode) => *mode,
            Self::Steps(steps) => steps.iter().fold(mode, |mode, step| step.apply(mode, is_directory)),
        }
    }
}

impl ModeStep {
    fn apply(self, mode: u32, is_directory: bool) -> u32 {
        let mut digit = self.bits | self.copied.map_or(0, |shift| (mode >> shift) & 7);
        if self.execute_if_any && (is_directory || mode & EXECUTE != 0) {
            digit |= 1;
        }
        let bits = (digit * EACH_DIGIT) & self.who;
        match self.operator {
            Operator::Add => mode | bits,
            Operator::Remove => mode & !bits,
            Operator::Set => (mode & !self.who) | bits,
        }
    }
}

/// Appends the steps of one clause, `[ugoa...][[+-=][rwxXst...]...]`. `None` if it has another form.
fn clause_steps(clause: &[u8], steps: &mut Vec<ModeStep>) -> Option<()> {
    let is_operator = |byte: &u8| matches!(byte, b'+' | b'-' | b'=');
    let (who, mut actions) = clause.split_at(clause.iter().position(is_operator)?);
    let who = match who {
        b"" => 0o777,
        who => who.iter().try_fold(0, |bits, letter| Some(bits | who_bits(*letter)?))?,
    };
    while let Some((operator, rest)) = actions.split_first() {
        let end = rest.iter().position(is_operator).unwrap_or(rest.len());
        let (letters, next) = rest.split_at(end);
        let operator = match operator {
            b'+' => Operator::Add,
            b'-' => Operator::Remove,
            _ => Operator::Set,
        };
        let mut step = ModeStep { operator, who, bits: 0, execute_if_any: false, copied: None };
        match letters {
            b"u" => step.copied = Some(6),
            b"g" => step.copied = Some(3),
            b"o" => step.copied = Some(0),
            letters => {
                for letter in letters {
                    match letter {
                        b'r' => step.bits |= 4,
                        b'w' => step.bits |= 2,
                        b'x' => step.bits |= 1,
                        b'X' => step.execute_if_any = true,
                        // SITE CHMOD does not change setuid, setgid and sticky bits, as in `4755`.
                        b's' | b't' => {}
                        _ => return None,
                    }
                }
            }
        }
        steps.push(step);
        actions = next;
    }
    Some(())
}

fn who_bits(letter: u8) -> Option<u32> {
    match letter {
        b'u' => Some(0o700),
        b'g' => Some(0o070),
        b'o' => Some(0o007),
        b'a' => Some(0o777),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_the_meaning_of_chmod() {
        for (text, before, is_directory, after) in [
            ("640", 0, false, 0o640),
            ("00640", 0, false, 0o640),
            ("0000000000000755", 0, false, 0o755),
            ("u+x", 0o640, false, 0o740),
            ("+x", 0o640, false, 0o751),
            ("a-w", 0o666, false, 0o444),
            ("go=", 0o777, false, 0o700),
            ("u=rw,g=r,o-rwx", 0o777, false, 0o640),
            ("ug+rw-x", 0o151, false, 0o661),
            ("g=u", 0o740, false, 0o770),
            ("o=g-w", 0o760, false, 0o764),
            ("a+X", 0o640, false, 0o640),
            ("a+X", 0o740, false, 0o751),
            ("a+X", 0o640, true, 0o751),
            ("u+s,+t", 0o640, false, 0o640),
        ] {
            let change = ModeChange::parse(text.as_bytes()).unwrap();
            assert_eq!(change.apply(before, is_directory), after, "{text} on {before:o}");
        }
    }

    #[test]
    fn invalid_modes_are_refused() {
        for text in
            ["", "8", "6 4", "10000", "777777777777777", "0x1", "u", "u+q", "x+r", "u+x,", ",u+x", "u+ug"]
        {
            assert_eq!(ModeChange::parse(text.as_bytes()), Err(ArgumentError::Syntax), "{text}");
        }
    }
}
