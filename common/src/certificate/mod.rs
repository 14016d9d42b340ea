//! Client certificates, and the certificate rules by which they replace a password.

mod name;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub use self::name::{Attribute, DistinguishedName, InvalidName};

/// Length of a SHA-256 hash in bytes.
const SHA256: usize = 32;

/// A client certificate that a node has verified, in the form that the node sends to authd. Parts without
/// an exact text are omitted, so no rule can match them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificate {
    /// `None` if the subject is empty or has no exact text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<DistinguishedName>,
    pub key: KeyFingerprint,
    /// Subject alternative names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<AlternativeName>,
}

/// SHA-256 of a public key (the certificate's SubjectPublicKeyInfo in DER). Its text form is `sha256:` and 64
/// hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyFingerprint(pub [u8; SHA256]);

/// A subject alternative name (RFC 5280 section 4.2.1.6). Host names and the hosts of email addresses are
/// stored in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AlternativeName {
    Email(String),
    Uri(String),
    Dns(String),
}

/// A certificate rule, one entry of a user's `certificates`: it describes certificates that replace the
/// user's password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CertificateRule {
    /// Certificates with this subject.
    Subject(DistinguishedName),
    /// Certificates with this public key.
    Key(KeyFingerprint),
    /// Certificates with this alternative name.
    Name(AlternativeName),
}

/// The reason why a text is not a [`CertificateRule`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRule {
    #[error("{0:?}: {1}")]
    Subject(String, InvalidName),
    #[error("{0:?}: sha256: must be followed by 64 hexadecimal digits")]
    Key(String),
    #[error("{0:?}: an email:, URI: or DNS: name must be ASCII without spaces; an email address has one @")]
    Name(String),
}

impl CertificateRule {
    pub fn matches(&self, certificate: &ClientCertificate) -> bool {
        match self {
            Self::Subject(_) => {
                certificate.subject.as_ref().is_some_and(|subject| self.matches_subject(subject))
            }
            Self::Key(key) => *key == certificate.key,
            Self::Name(name) => certificate.names.contains(name),
        }
    }

    /// Returns true if this is a rule for a subject, and `subject` matches it.
    pub fn matches_subject(&self, subject: &DistinguishedName) -> bool {
        matches!(self, Self::Subject(name) if name.matches(subject))
    }
}

impl AlternativeName {
    /// # Errors
    /// The text is empty, is not ASCII, contains a space or control character, or is not an email address.
    pub fn email(text: &str) -> Result<Self, InvalidRule> {
        let invalid = || InvalidRule::Name(text.to_owned());
        let (user, host) = text.split_once('@').ok_or_else(invalid)?;
        if user.is_empty() || host.is_empty() || host.contains('@') || !is_graphic(text) {
            return Err(invalid());
        }
        Ok(Self::Email(format!("{user}@{}", host.to_ascii_lowercase())))
    }

    /// # Errors
    /// As [`Self::email`].
    pub fn uri(text: &str) -> Result<Self, InvalidRule> {
        if is_graphic(text) {
            Ok(Self::Uri(text.to_owned()))
        } else {
            Err(InvalidRule::Name(text.to_owned()))
        }
    }

    /// # Errors
    /// As [`Self::email`].
    pub fn dns(text: &str) -> Result<Self, InvalidRule> {
        match is_graphic(text) {
            true => Ok(Self::Dns(text.to_ascii_lowercase())),
            false => Err(InvalidRule::Name(text.to_owned())),
        }
    }
}

fn is_graphic(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The rest of `text` after `prefix`. Ignores the case of the prefix.
fn strip_prefix_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

impl fmt::Display for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl FromStr for KeyFingerprint {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let mut hash = [0; SHA256];
        let digits =
            strip_prefix_ignoring_case(text, "sha256:").ok_or_else(|| InvalidRule::Key(text.to_owned()))?;
        hex::decode_to_slice(digits, &mut hash).map_err(|_| InvalidRule::Key(text.to_owned()))?;
        Ok(Self(hash))
    }
}

impl fmt::Display for AlternativeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Email(name) => write!(f, "email:{name}"),
            Self::Uri(name) => write!(f, "URI:{name}"),
            Self::Dns(name) => write!(f, "DNS:{name}"),
        }
    }
}

impl FromStr for AlternativeName {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        if let Some(name) = strip_prefix_ignoring_case(text, "email:") {
            return Self::email(name);
        }
        if let Some(name) = strip_prefix_ignoring_case(text, "URI:") {
            return Self::uri(name);
        }
        strip_prefix_ignoring_case(text, "DNS:")
            .map_or_else(|| Err(InvalidRule::Name(text.to_owned())), Self::dns)
    }
}

impl fmt::Display for CertificateRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subject(name) => name.fmt(f),
            Self::Key(key) => key.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl FromStr for CertificateRule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        if strip_prefix_ignoring_case(text, "sha256:").is_some() {
            return text.parse().map(Self::Key);
        }
        if ["email:", "URI:", "DNS:"].iter().any(|prefix| strip_prefix_ignoring_case(text, prefix).is_some())
        {
            return text.parse().map(Self::Name);
        }
        text.parse().map(Self::Subject).map_err(|error| InvalidRule::Subject(text.to_owned(), error))
    }
}

/// Conversions with which serde writes and reads a type as its text form.
macro_rules! as_text {
    ($($type:ty: $error:ty),*) => {$(
        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }

        impl TryFrom<String> for $type {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, $error> {
                text.parse()
            }
        }
    )*};
}

as_text!(
    KeyFingerprint: InvalidRule,
    AlternativeName: InvalidRule,
    CertificateRule: InvalidRule,
    DistinguishedName: InvalidName
);

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> CertificateRule {
        text.parse().unwrap()
    }

    #[test]
    fn a_rule_matches_by_subject_key_or_name() {
        let certificate = ClientCertificate {
            subject: Some("CN=scanner,O=Example".parse().unwrap()),
            key: KeyFingerprint([0xab; 32]),
            names: vec![
                AlternativeName::email("Ann@Example.COM").unwrap(),
                AlternativeName::uri("spiffe://example/Scanner").unwrap(),
                AlternativeName::dns("Scanner.example").unwrap(),
            ],
        };
        for text in [
            "CN=scanner,O=Example",
            "O=Example, CN=scanner",
            &format!("sha256:{}", "ab".repeat(32)),
            &format!("SHA256:{}", "AB".repeat(32)),
            "email:Ann@example.com",
            "EMAIL:Ann@EXAMPLE.com",
            "URI:spiffe://example/Scanner",
            "dns:scanner.EXAMPLE",
        ] {
            assert!(rule(text).matches(&certificate), "{text}");
            assert_eq!(rule(&rule(text).to_string()), rule(text));
        }
        for text in [
            "CN=scanner",
            &format!("sha256:{}", "ac".repeat(32)),
            "email:ann@example.com",
            "URI:spiffe://example/scanner",
            "DNS:example",
            "DNS:*.example",
        ] {
            assert!(!rule(text).matches(&certificate), "{text}");
        }
        let empty = ClientCertificate { subject: None, key: KeyFingerprint([0; 32]), names: Vec::new() };
        assert!(!rule("CN=scanner").matches(&empty));
    }

    #[test]
    fn an_invalid_rule_is_refused_and_quoted() {
        for text in [
            "",
            "scanner",
            "sha256:ab",
            "sha256:zz",
            "email:ann",
            "email:a@b@c",
            "URI:",
            "DNS:a b",
            "DNS:é",
            "CN=a,b",
        ] {
            let error = text.parse::<CertificateRule>().unwrap_err().to_string();
            assert!(
                error.contains(&format!("{:?}", text.split_once(':').map_or(text, |(_, name)| name)))
                    || error.contains(text),
                "{error}"
            );
        }
    }

    #[test]
    fn a_certificate_survives_json_and_its_parts_are_checked() {
        let certificate = ClientCertificate {
            subject: Some("CN=a\\,b".parse().unwrap()),
            key: KeyFingerprint([1; 32]),
            names: vec![AlternativeName::dns("a").unwrap()],
        };
        let json = serde_json::to_value(&certificate).unwrap();
        assert_eq!(json["subject"], "CN=a\\,b");
        assert_eq!(serde_json::from_value::<ClientCertificate>(json.clone()).unwrap(), certificate);
        for (key, value) in [("subject", "CN=a,b"), ("key", "ab"), ("names", "x")] {
            let mut wrong = json.clone();
            wrong[key] = value.into();
            assert!(serde_json::from_value::<ClientCertificate>(wrong).is_err(), "{key}");
        }
    }
}
