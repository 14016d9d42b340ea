//! Reads subject, key and alternative names from the DER of a client certificate.

use common::certificate::{AlternativeName, Attribute, ClientCertificate, DistinguishedName, KeyFingerprint};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::{
    asn1_rs::Tag,
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::FromDer,
    x509::{AttributeTypeAndValue, X509Name},
};

/// Longest subject sent to authd, in bytes of text. A longer one is omitted.
const MAX_SUBJECT: usize = 2048;

/// Limits for the alternative names sent to authd: their number and their total length in bytes. If either
/// is exceeded, all names are omitted, because authd limits the size of a request.
const MAX_NAMES: usize = 64;
const MAX_NAMES_BYTES: usize = 4096;

/// The fields that certificate rules compare. `None` if this parser cannot read the certificate, although
/// rustls verified it; then it cannot replace a password.
pub(super) fn describe(certificate: &CertificateDer<'_>) -> Option<ClientCertificate> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = subject(parsed.subject()).filter(|subject| subject.to_string().len() <= MAX_SUBJECT);
    let key = KeyFingerprint(Sha256::digest(parsed.public_key().raw).into());
    Some(ClientCertificate { subject, key, names: names(&parsed) })
}

/// Expiry time of the certificate in Unix seconds.
pub(super) fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

fn subject(name: &X509Name<'_>) -> Option<DistinguishedName> {
    let relative = name.iter().map(|relative| relative.iter().map(attribute).collect::<Option<Vec<_>>>());
    DistinguishedName::new(relative.collect::<Option<_>>()?).ok()
}

/// Accepts only string types whose bytes are UTF-8 or ASCII. T61String, BMPString and UniversalString have
/// other encodings, and two different values could become the same text.
fn attribute(attribute: &AttributeTypeAndValue<'_>) -> Option<Attribute> {
    let value = attribute.attr_value();
    let text = str::from_utf8(value.data).ok()?;
    match value.tag() {
        Tag::Utf8String => {}
        Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString
            if text.is_ascii() => {}
        _ => return None,
    }
    Some((attribute.attr_type().to_id_string(), text.to_owned()))
}

fn names(certificate: &X509Certificate<'_>) -> Vec<AlternativeName> {
    // A duplicate extension is an error.
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names = extension.value.general_names.iter().filter_map(|name| match name {
        GeneralName::RFC822Name(name) => AlternativeName::email(name).ok(),
        GeneralName::URI(name) => AlternativeName::uri(name).ok(),
        GeneralName::DNSName(name) => AlternativeName::dns(name).ok(),
        _ => None,
    });
    let names: Vec<_> = names.take(MAX_NAMES + 1).collect();
    let bytes: usize = names.iter().map(|name| name.to_string().len()).sum();
    if names.len() > MAX_NAMES || bytes > MAX_NAMES_BYTES { Vec::new() } else { names }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, SanType};

    use super::*;

    fn described(change: impl FnOnce(&mut CertificateParams)) -> ClientCertificate {
        let mut parameters = CertificateParams::new([]).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut parameters);
        let certificate = parameters.self_signed(&KeyPair::generate().unwrap()).unwrap();
        describe(certificate.der()).unwrap()
    }

    fn subject_of(attributes: &[(DnType, DnValue)]) -> Option<String> {
        let certificate = described(|parameters| {
            for (kind, value) in attributes {
                parameters.distinguished_name.push(kind.clone(), value.clone());
            }
        });
        certificate.subject.map(|subject| subject.to_string())
    }

    fn text(value: &str) -> DnValue {
        DnValue::Utf8String(value.to_owned())
    }

    #[test]
    fn each_special_character_of_a_subject_is_escaped() {
        for (value, written) in [
            ("Acme, CN=scanner", "O=Acme\\, CN=scanner"),
            ("a+b", "O=a\\+b"),
            ("a=b", "O=a=b"),
            ("\"a", "O=\\\"a"),
            ("a\\", "O=a\\\\"),
            ("<a>", "O=\\<a\\>"),
            ("a;b", "O=a\\;b"),
            (" a", "O=\\ a"),
            ("#a", "O=\\#a"),
        ] {
            let subject = subject_of(&[(DnType::OrganizationName, text(value))]).unwrap();
            assert_eq!(subject, written);
            assert_eq!(subject.parse::<DistinguishedName>().unwrap().to_string(), written);
        }
        let two = [(DnType::OrganizationName, text("Acme")), (DnType::CommonName, text("scanner"))];
        assert_eq!(subject_of(&two).as_deref(), Some("CN=scanner,O=Acme"));
    }

    #[test]
    fn a_subject_without_an_exact_text_is_omitted_and_the_key_is_kept() {
        for value in [text("a\0"), text("a\nb"), DnValue::BmpString("ab".try_into().unwrap())] {
            let certificate = described(|parameters| {
                parameters.distinguished_name.push(DnType::CommonName, text("scanner"));
                parameters.distinguished_name.push(DnType::OrganizationName, value.clone());
            });
            assert_eq!(certificate.subject, None, "{value:?}");
            assert_ne!(certificate.key, KeyFingerprint([0; 32]));
        }
        assert_eq!(subject_of(&[(DnType::CommonName, text(&"x".repeat(3000)))]), None);
    }

    #[test]
    fn alternative_names_are_sent_unless_there_are_too_many() {
        let dns = |name: String| SanType::DnsName(name.try_into().unwrap());
        let names = [
            SanType::Rfc822Name("Ann@Example.com".try_into().unwrap()),
            SanType::URI("spiffe://example/a".try_into().unwrap()),
            dns("A.example".to_owned()),
            SanType::IpAddress("127.0.0.1".parse().unwrap()),
        ];
        let certificate = described(|parameters| parameters.subject_alt_names.extend(names));
        let texts: Vec<_> = certificate.names.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["email:Ann@example.com", "URI:spiffe://example/a", "DNS:a.example"]);
        let many = (0..=MAX_NAMES).map(|i| dns(format!("host{i}")));
        assert!(described(|parameters| parameters.subject_alt_names.extend(many)).names.is_empty());
    }
}
