//! Subjects of certificates, and their text form by RFC 4514.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Attribute types with a name, and their object identifiers. RFC 4514 section 3 defines the first nine
/// names. OpenSSL prints the others.
const TYPES: [(&str, &str); 18] = [
    ("CN", "2.5.4.3"),
    ("L", "2.5.4.7"),
    ("ST", "2.5.4.8"),
    ("O", "2.5.4.10"),
    ("OU", "2.5.4.11"),
    ("C", "2.5.4.6"),
    ("STREET", "2.5.4.9"),
    ("DC", "0.9.2342.19200300.100.1.25"),
    ("UID", "0.9.2342.19200300.100.1.1"),
    ("emailAddress", "1.2.840.113549.1.9.1"),
    ("SN", "2.5.4.4"),
    ("serialNumber", "2.5.4.5"),
    ("title", "2.5.4.12"),
    ("name", "2.5.4.41"),
    ("GN", "2.5.4.42"),
    ("initials", "2.5.4.43"),
    ("dnQualifier", "2.5.4.46"),
    ("pseudonym", "2.5.4.65"),
];

/// Other names of the same types. They are accepted, but not written.
const ALIASES: [(&str, &str); 6] = [
    ("E", "1.2.840.113549.1.9.1"),
    ("Email", "1.2.840.113549.1.9.1"),
    ("S", "2.5.4.8"),
    ("surname", "2.5.4.4"),
    ("givenName", "2.5.4.42"),
    ("domainComponent", "0.9.2342.19200300.100.1.25"),
];

/// Characters that must follow a backslash in the text of a value (RFC 4514 section 2.4).
const SPECIAL: [char; 7] = ['"', '+', ',', ';', '<', '>', '\\'];

/// An attribute: the object identifier of its type in dotted decimal form, and its value.
pub type Attribute = (String, String);

/// A subject with at least one attribute. Two subjects are equal if they have the same relative names in
/// the same order, each with the same set of attributes. Values are compared byte by byte.
///
/// [`Display`](fmt::Display) writes the canonical text by RFC 4514. Different names have different texts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DistinguishedName {
    /// The relative names in the order of the certificate, which RFC 4514 reverses. Their attributes are
    /// sorted.
    relative: Vec<Vec<Attribute>>,
}

/// The reason why a text or a list of relative names is not a usable name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("a subject has at least one attribute, as in CN=scanner,O=Example")]
    Empty,
    #[error(
        "{0:?} is not TYPE=VALUE; RFC 4514 requires a backslash before a comma, plus sign or semicolon in a \
         value"
    )]
    NoValue(String),
    #[error("unknown attribute type {0:?}; a number such as 2.5.4.3 always works")]
    UnknownType(String),
    #[error("{0:?} needs a backslash before it (RFC 4514)")]
    NotEscaped(char),
    #[error("a backslash comes before a special character or two hexadecimal digits (RFC 4514)")]
    Escape,
    #[error("values in hexadecimal (#…) are not supported; list the key instead (sha256:…)")]
    Hexadecimal,
    #[error("a value contains a control character or is not UTF-8")]
    NotText,
    #[error("an attribute occurs twice in one relative name")]
    Duplicate,
}

impl DistinguishedName {
    /// `relative`: the relative names in the order of the certificate, each with its attributes.
    ///
    /// # Errors
    /// The name is empty, a type is not an object identifier, an attribute occurs twice in a relative name,
    /// or a value contains a control character.
    pub fn new(relative: Vec<Vec<Attribute>>) -> Result<Self, InvalidName> {
        if relative.is_empty() {
            return Err(InvalidName::Empty);
        }
        let relative = relative.into_iter().map(|mut attributes| {
            attributes.sort();
            if attributes.is_empty() {
                return Err(InvalidName::Empty);
            }
            if attributes.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(InvalidName::Duplicate);
            }
            if let Some((kind, _)) = attributes.iter().find(|(kind, _)| !is_identifier(kind)) {
                return Err(InvalidName::UnknownType(kind.clone()));
            }
            if attributes.iter().any(|(_, value)| value.contains(char::is_control)) {
                return Err(InvalidName::NotText);
            }
            Ok(attributes)
        });
        Ok(Self { relative: relative.collect::<Result<_, _>>()? })
    }

    /// Returns true if this name, from a configuration, matches `subject`. It may list the relative names
    /// in either direction, because RFC 4514 begins with the last, and many programs with the first. If an
    /// attribute type occurs more than once, only the direction of RFC 4514 matches.
    pub fn matches(&self, subject: &Self) -> bool {
        self == subject || (self.types_differ() && self.relative.iter().rev().eq(subject.relative.iter()))
    }

    /// Returns true if the name is a single attribute without special characters. Older nodes write
    /// subjects without escapes; only such a text is unambiguous.
    pub fn is_plain(&self) -> bool {
        let [attributes] = &*self.relative else { return false };
        let [(_, value)] = &**attributes else { return false };
        !value.contains('=') && escaped(value) == *value
    }

    fn types_differ(&self) -> bool {
        let mut types: Vec<&str> = self.relative.iter().flatten().map(|(kind, _)| kind.as_str()).collect();
        types.sort_unstable();
        types.windows(2).all(|pair| pair[0] != pair[1])
    }
}

impl fmt::Display for DistinguishedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, attributes) in self.relative.iter().rev().enumerate() {
            f.write_str(if i == 0 { "" } else { "," })?;
            for (j, (kind, value)) in attributes.iter().enumerate() {
                f.write_str(if j == 0 { "" } else { "+" })?;
                let name = TYPES.iter().find(|(_, identifier)| identifier == kind).map(|(name, _)| *name);
                write!(f, "{}={}", name.unwrap_or(kind), escaped(value))?;
            }
        }
        Ok(())
    }
}

fn escaped(value: &str) -> String {
    let last = value.chars().count().saturating_sub(1);
    let mut text = String::with_capacity(value.len());
    for (i, character) in value.chars().enumerate() {
        let at_an_end = (character == ' ' && (i == 0 || i == last)) || (character == '#' && i == 0);
        if at_an_end || SPECIAL.contains(&character) {
            text.push('\\');
        }
        text.push(character);
    }
    text
}

/// Returns true if the text is an object identifier in canonical dotted decimal form.
fn is_identifier(text: &str) -> bool {
    let is_number = |part: &str| {
        !part.is_empty()
            && part.len() <= 39
            && part.bytes().all(|byte| byte.is_ascii_digit())
            && (part == "0" || !part.starts_with('0'))
    };
    text.contains('.') && text.split('.').all(is_number)
}

impl FromStr for DistinguishedName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.trim().is_empty() {
            return Err(InvalidName::Empty);
        }
        let mut relative = Vec::new();
        for name in split(text, ',') {
            let attributes = split(name, '+').into_iter().map(attribute);
            relative.push(attributes.collect::<Result<Vec<_>, _>>()?);
        }
        relative.reverse();
        Self::new(relative)
    }
}

/// The parts between separators. A separator after a backslash does not count.
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start, mut is_escaped) = (Vec::new(), 0, false);
    for (at, character) in text.char_indices() {
        if is_escaped {
            is_escaped = false;
        } else if character == '\\' {
            is_escaped = true;
        } else if character == separator {
            parts.push(&text[start..at]);
            start = at + character.len_utf8();
        }
    }
    parts.push(&text[start..]);
    parts
}

fn attribute(text: &str) -> Result<Attribute, InvalidName> {
    let (kind, value) = text.split_once('=').ok_or_else(|| InvalidName::NoValue(text.trim().to_owned()))?;
    let kind = kind.trim_matches(' ');
    let known = TYPES.iter().chain(&ALIASES).find(|(name, _)| name.eq_ignore_ascii_case(kind));
    let kind = match known {
        Some((_, identifier)) => (*identifier).to_owned(),
        None if is_identifier(kind) => kind.to_owned(),
        None => return Err(InvalidName::UnknownType(kind.to_owned())),
    };
    Ok((kind, unescaped(value)?))
}

fn unescaped(text: &str) -> Result<String, InvalidName> {
    let text = text.trim_start_matches(' ');
    if text.starts_with('#') {
        return Err(InvalidName::Hexadecimal);
    }
    let mut bytes = Vec::with_capacity(text.len());
    // The end of the value without unescaped spaces at the end.
    let mut end = 0;
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        if character == '\\' {
            match rest.next().ok_or(InvalidName::Escape)? {
                special if SPECIAL.contains(&special) || [' ', '#', '='].contains(&special) => {
                    bytes.push(special as u8);
                }
                first => {
                    let second = rest.next().ok_or(InvalidName::Escape)?;
                    let digit = |digit: char| digit.to_digit(16).ok_or(InvalidName::Escape);
                    // Two hexadecimal digits fit a byte.
                    bytes.push((digit(first)? * 16 + digit(second)?) as u8);
                }
            }
            end = bytes.len();
        } else if SPECIAL.contains(&character) {
            return Err(InvalidName::NotEscaped(character));
        } else {
            bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            if character != ' ' {
                end = bytes.len();
            }
        }
    }
    bytes.truncate(end);
    String::from_utf8(bytes).map_err(|_| InvalidName::NotText)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<DistinguishedName, InvalidName> {
        text.parse()
    }

    fn name(attributes: &[(&str, &str)]) -> DistinguishedName {
        let one = |(kind, value): &(&str, &str)| vec![((*kind).to_owned(), (*value).to_owned())];
        DistinguishedName::new(attributes.iter().map(one).collect()).unwrap()
    }

    const O: &str = "2.5.4.10";
    const CN: &str = "2.5.4.3";

    #[test]
    fn a_comma_in_a_value_is_not_a_separator() {
        let (two, one) = (name(&[(O, "Acme"), (CN, "scanner")]), name(&[(O, "Acme, CN=scanner")]));
        assert_eq!(two.to_string(), "CN=scanner,O=Acme");
        assert_eq!(one.to_string(), "O=Acme\\, CN=scanner");
        for rule in ["O=Acme, CN=scanner", "CN=scanner,O=Acme", "cn = scanner , o = Acme"] {
            let rule = parse(rule).unwrap();
            assert!(rule.matches(&two) && !rule.matches(&one), "{rule}");
        }
        let rule = parse("O=Acme\\, CN=scanner").unwrap();
        assert!(rule.matches(&one) && !rule.matches(&two));
    }

    #[test]
    fn the_direction_matters_only_if_a_type_occurs_twice() {
        let subject = name(&[("2.5.4.11", "a"), ("2.5.4.11", "b"), (CN, "c")]);
        assert_eq!(subject.to_string(), "CN=c,OU=b,OU=a");
        assert!(parse("CN=c,OU=b,OU=a").unwrap().matches(&subject));
        for other in ["OU=a, OU=b, CN=c", "CN=c,OU=a,OU=b", "OU=b,CN=c,OU=a"] {
            assert!(!parse(other).unwrap().matches(&subject), "{other}");
        }
        assert!(!parse("CN=c,O=b,C=a").unwrap().matches(&name(&[(O, "b"), (CN, "c"), ("2.5.4.6", "a")])));
    }

    #[test]
    fn special_characters_are_escaped_and_read_again() {
        for (value, text) in [
            ("a,b", "CN=a\\,b"),
            ("a+b", "CN=a\\+b"),
            ("a=b", "CN=a=b"),
            ("\"a\"", "CN=\\\"a\\\""),
            ("a\\", "CN=a\\\\"),
            ("<a>;", "CN=\\<a\\>\\;"),
            (" a ", "CN=\\ a\\ "),
            (" ", "CN=\\ "),
            ("#a#", "CN=\\#a#"),
            ("", "CN="),
            ("Lučić", "CN=Lučić"),
        ] {
            let subject = name(&[(CN, value)]);
            assert_eq!(subject.to_string(), text);
            assert_eq!(parse(text).unwrap(), subject, "{text}");
        }
        assert_eq!(parse("CN=Lu\\C4\\8Di\\C4\\87").unwrap(), name(&[(CN, "Lučić")]));
        assert_eq!(parse("2.5.4.3=a").unwrap(), parse("CN=a").unwrap());
        let both = parse("OU=x+CN=a").unwrap();
        assert_eq!(both, parse("CN=a+OU=x").unwrap());
        assert_ne!(both, parse("CN=a\\+OU=x").unwrap());
    }

    #[test]
    fn invalid_names_are_refused() {
        for (text, error) in [
            ("", InvalidName::Empty),
            ("CN=a,b", InvalidName::NoValue("b".to_owned())),
            ("scanner", InvalidName::NoValue("scanner".to_owned())),
            ("CN=a,", InvalidName::NoValue(String::new())),
            ("X=a", InvalidName::UnknownType("X".to_owned())),
            ("2.05=a", InvalidName::UnknownType("2.05".to_owned())),
            ("CN=a;O=b", InvalidName::NotEscaped(';')),
            ("CN=\"a\"", InvalidName::NotEscaped('"')),
            ("CN=a\\", InvalidName::Escape),
            ("CN=a\\x1", InvalidName::Escape),
            ("CN=#0403616263", InvalidName::Hexadecimal),
            ("CN=a\\00", InvalidName::NotText),
            ("CN=\\ff", InvalidName::NotText),
            ("CN=a+CN=a", InvalidName::Duplicate),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn only_one_attribute_without_special_characters_is_plain() {
        for (text, plain) in
            [("CN=scanner 7", true), ("CN=a,O=b", false), ("CN=a\\,b", false), ("CN=a=b", false)]
        {
            assert_eq!(parse(text).unwrap().is_plain(), plain, "{text}");
        }
    }

    fn names() -> impl Strategy<Value = DistinguishedName> {
        let kind = prop_oneof![Just(CN.to_owned()), Just(O.to_owned()), "[12]\\.[1-9]{1,3}\\.[0-9]"];
        let value = "[a ,+=\"\\\\<>;#é]{0,6}";
        let attributes = prop::collection::btree_set((kind, value), 1..3);
        prop::collection::vec(attributes.prop_map(|all| all.into_iter().collect()), 1..4)
            .prop_map(|relative| DistinguishedName::new(relative).unwrap())
    }

    proptest! {
        #[test]
        fn a_name_survives_its_text_form(name in names()) {
            prop_assert_eq!(parse(&name.to_string()), Ok(name));
        }

        #[test]
        fn two_different_names_have_different_texts(one in names(), other in names()) {
            prop_assert_eq!(one == other, one.to_string() == other.to_string());
        }

        #[test]
        fn any_text_is_refused_or_survives_being_written(text in "[CNO=,+ a\\\\#\"é0-9.]{0,30}") {
            if let Ok(name) = parse(&text) {
                prop_assert_eq!(parse(&name.to_string()), Ok(name));
            }
        }
    }
}
