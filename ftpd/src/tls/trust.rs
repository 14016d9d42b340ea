//! Verification of client certificates: authorities, revocation lists, and the check of resumed TLS sessions.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use common::sync::lock;
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

/// A warning is logged if a revocation list expires within this many seconds (one day).
const EXPIRES_SOON: i64 = 24 * 3600;

/// PEM files of authorities and revocation lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustFiles {
    pub authorities: PathBuf,
    pub revocations: Vec<PathBuf>,
}

/// The authorities and revocation lists in use.
pub struct ClientTrust {
    verifier: Arc<dyn ClientCertVerifier>,
    /// SHA-256 of all authorities and lists. Equal on nodes with the same files.
    hash: [u8; 32],
    /// Time at which the first revocation list expires, in Unix seconds.
    lists_expire: i64,
}

/// A client certificate chain that a full handshake verified. The tickets of the TLS session carry it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedChain {
    /// `ClientTrust::hash` at the time of the verification.
    pub trust_hash: [u8; 32],
    /// Expiry time of the certificate in Unix seconds.
    pub expires: i64,
    /// The certificate, followed by the intermediate certificates that the client sent.
    pub chain: Vec<CertificateDer<'static>>,
}

impl ClientTrust {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// A file cannot be read, is empty, or contains an unusable entry. An expired revocation list is not an
    /// error: it is logged, and the clients of its authority are refused.
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
        // If an authority has two lists, the verifier uses the first.
        lists.sort_by_key(|list| std::cmp::Reverse(list.issued));
        let lists_expire = lists.iter().map(|list| list.expires).min().unwrap_or(i64::MAX);
        metrics::tls_revocation_lists(lists.iter().map(|list| list.expires).min());
        parts.extend(lists.iter().map(|list| list.der.to_vec()));
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .allow_unauthenticated()
            .with_crls(lists.into_iter().map(|list| list.der))
            .enforce_revocation_expiration()
            .build()
            .map_err(|error| failed(&error))?;
        Ok(Arc::new(Self { verifier, hash: hash(parts), lists_expire }))
    }

    /// Returns true if a certificate that this or another node has verified would still be accepted now.
    pub fn still_accepts(&self, verified: &VerifiedChain, now: i64) -> bool {
        if now > verified.expires {
            return false;
        }
        if verified.trust_hash == self.hash && now <= self.lists_expire {
            return true;
        }
        let Some((end_entity, intermediates)) = verified.chain.split_first() else { return false };
        self.verifier.verify_client_cert(end_entity, intermediates, UnixTime::now()).is_ok()
    }
}

struct RevocationList {
    der: CertificateRevocationListDer<'static>,
    /// Unix seconds.
    issued: i64,
    /// Unix seconds.
    expires: i64,
}

fn read_lists(path: &Path) -> Result<Vec<RevocationList>, TlsError> {
    let failed = |reason: &dyn fmt::Display| TlsError::Revocations(path.to_owned(), reason.to_string());
    let mut lists = Vec::new();
    for der in CertificateRevocationListDer::pem_file_iter(path).map_err(|error| failed(&error))? {
        let der = der.map_err(|error| failed(&error))?;
        let (_, parsed) = CertificateRevocationList::from_der(&der).map_err(|error| failed(&error))?;
        let Some(expires) = parsed.next_update().map(|time| time.timestamp()) else {
            return Err(failed(&"the revocation list has no expiry time (nextUpdate)"));
        };
        let issued = parsed.last_update().timestamp();
        let issuer = parsed.issuer().to_string();
        lists.push(RevocationList { der: der.clone(), issued, expires });
        warn_of_expiry(path, &issuer, expires - unix_seconds());
    }
    if lists.is_empty() { Err(failed(&"the file contains no revocation list")) } else { Ok(lists) }
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
            "{path}: the revocation list expires in {} minutes; after that all client certificates of this \
             authority are refused",
            left / 60
        );
    }
}

/// SHA-256 of the parts in any order.
fn hash(mut parts: Vec<Vec<u8>>) -> [u8; 32] {
    parts.sort();
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// Verifier of one connection. It records the verified certificate for the connection's tickets.
#[derive(Clone)]
pub struct RecordingVerifier {
    pub trust: Arc<ClientTrust>,
    verified: Arc<Mutex<Option<VerifiedChain>>>,
}

impl RecordingVerifier {
    pub fn new(trust: Arc<ClientTrust>) -> Self {
        Self { trust, verified: Arc::default() }
    }

    /// The certificate that this connection's full handshake verified.
    pub fn verified(&self) -> Option<VerifiedChain> {
        lock(&self.verified).clone()
    }
}

impl fmt::Debug for RecordingVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecordingVerifier")
    }
}

impl ClientCertVerifier for RecordingVerifier {
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
        let chain =
            [end_entity].into_iter().chain(intermediates).map(|certificate| certificate.clone().into_owned());
        // If the expiry time is unknown, 0 prevents a resumption.
        let expires = identity::not_after(end_entity).unwrap_or(0);
        *lock(&self.verified) =
            Some(VerifiedChain { trust_hash: self.trust.hash, expires, chain: chain.collect() });
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
