//! Which client certificates are believed: the authorities, the revocation lists, and what a resumed TLS session
//! must still fulfil.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime, pem::PemObject},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use sha2::{Digest, Sha256};
use x509_parser::{prelude::FromDer, revocation_list::CertificateRevocationList};

use super::{TlsError, identity, unix_seconds};
use crate::metrics;

/// A warning is logged if a revocation list expires within this many seconds: a day.
const EXPIRES_SOON: i64 = 24 * 3600;

/// Where the authorities and the revocation lists are, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustFiles {
    pub authorities: PathBuf,
    pub revocations: Vec<PathBuf>,
}

/// The authorities and revocation lists in use.
pub struct Trust {
    verifier: Arc<dyn ClientCertVerifier>,
    /// SHA-256 of all of them. Nodes with the same files have the same.
    hash: [u8; 32],
    /// When the first revocation list expires, in seconds since 1970.
    lists_until: i64,
}

/// A client certificate that was verified in a full handshake, as it travels in the tickets of that TLS session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// `Trust::hash` of what verified it.
    pub by: [u8; 32],
    /// Until when the certificate is valid, in seconds since 1970.
    pub until: i64,
    /// The certificate and those that came with it.
    pub chain: Vec<CertificateDer<'static>>,
}

impl Trust {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// A file cannot be read, has nothing of its kind in it, or has something that cannot be used. An expired
    /// revocation list can: the log says that clients are refused.
    pub fn load(files: &TrustFiles, provider: &Arc<CryptoProvider>) -> Result<Arc<Self>, TlsError> {
        let path = &files.authorities;
        let failed = |reason: &dyn fmt::Display| TlsError::Authorities(path.clone(), reason.to_string());
        let mut roots = RootCertStore::empty();
        let mut parts = Vec::new();
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))? {
            let certificate = certificate.map_err(|error| failed(&error))?;
            parts.push(certificate.to_vec());
            roots.add(certificate).map_err(|error| failed(&error))?;
        }
        let mut lists = Vec::new();
        for path in &files.revocations {
            lists.extend(read_lists(path)?);
        }
        // Of two lists of one authority, the verifier goes by the first.
        lists.sort_by_key(|list| std::cmp::Reverse(list.issued));
        let lists_until = lists.iter().map(|list| list.until).min().unwrap_or(i64::MAX);
        metrics::tls_revocation_lists(lists.iter().map(|list| list.until).min());
        parts.extend(lists.iter().map(|list| list.der.to_vec()));
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .allow_unauthenticated()
            .with_crls(lists.into_iter().map(|list| list.der))
            .enforce_revocation_expiration()
            .build()
            .map_err(|error| failed(&error))?;
        Ok(Arc::new(Self { verifier, hash: hash(parts), lists_until }))
    }

    /// Whether a certificate that was verified earlier, here or on another node, would be accepted at this time.
    pub fn still_accepts(&self, verified: &Verified, now: i64) -> bool {
        if now > verified.until {
            return false;
        }
        if verified.by == self.hash && now <= self.lists_until {
            return true;
        }
        let Some((end_entity, intermediates)) = verified.chain.split_first() else { return false };
        self.verifier.verify_client_cert(end_entity, intermediates, UnixTime::now()).is_ok()
    }
}

struct List {
    der: CertificateRevocationListDer<'static>,
    issued: i64,
    until: i64,
}

fn read_lists(path: &Path) -> Result<Vec<List>, TlsError> {
    let failed = |reason: &dyn fmt::Display| TlsError::Revocations(path.to_owned(), reason.to_string());
    let mut lists = Vec::new();
    for der in CertificateRevocationListDer::pem_file_iter(path).map_err(|error| failed(&error))? {
        let der = der.map_err(|error| failed(&error))?;
        let (_, parsed) = CertificateRevocationList::from_der(&der).map_err(|error| failed(&error))?;
        let Some(until) = parsed.next_update().map(|time| time.timestamp()) else {
            return Err(failed(&"the revocation list does not say when the next one comes (nextUpdate)"));
        };
        let issued = parsed.last_update().timestamp();
        let issuer = parsed.issuer().to_string();
        lists.push(List { der: der.clone(), issued, until });
        warn_of_expiry(path, &issuer, until - unix_seconds());
    }
    if lists.is_empty() { Err(failed(&"no revocation list in it")) } else { Ok(lists) }
}

/// `left`: seconds until the list expires.
fn warn_of_expiry(path: &Path, issuer: &str, left: i64) {
    let path = path.display();
    if left <= 0 {
        log::error!(
            setting = "tls_client_crls", issuer;
            "{path}: the revocation list has expired; all client certificates of this authority are refused"
        );
    } else if left < EXPIRES_SOON {
        log::warn!(
            setting = "tls_client_crls", issuer;
            "{path}: the revocation list expires in {} minutes; then all client certificates of this authority are refused",
            left / 60
        );
    }
}

/// The order of the parts does not count.
fn hash(mut parts: Vec<Vec<u8>>) -> [u8; 32] {
    parts.sort();
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// The verifier of one connection. Remembers what it verified, for the connection's tickets.
#[derive(Clone)]
pub struct Witness {
    pub trust: Arc<Trust>,
    seen: Arc<Mutex<Option<Verified>>>,
}

impl Witness {
    pub fn new(trust: Arc<Trust>) -> Self {
        Self { trust, seen: Arc::default() }
    }

    /// The certificate that this connection's full handshake verified.
    pub fn verified(&self) -> Option<Verified> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Witness")
    }
}

impl ClientCertVerifier for Witness {
    fn offer_client_auth(&self) -> bool {
        self.trust.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.trust.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.trust.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.trust.verifier.verify_client_cert(end_entity, intermediates, now)?;
        let chain = [end_entity].into_iter().chain(intermediates).map(|one| one.clone().into_owned());
        // One whose end is not known is not resumed.
        let until = identity::not_after(end_entity).unwrap_or(0);
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Verified { by: self.trust.hash, until, chain: chain.collect() });
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.trust.verifier.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.trust.verifier.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.verifier.supported_verify_schemes()
    }
}
