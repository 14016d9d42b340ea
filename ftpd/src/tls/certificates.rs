//! The node's certificates and keys: loading, checking, and selection for each client.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName,
        pem::{self, PemObject},
    },
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::unix_seconds;

/// A warning is logged if a certificate expires within this many seconds (two weeks).
const EXPIRES_SOON: i64 = 14 * 24 * 3600;

/// PEM files of a certificate chain and its key. Both may be the same file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// Reason why a certificate cannot be used. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("{path}: {error}", path = .0.display(), error = .1)]
    Unreadable(PathBuf, pem::Error),
    #[error("{path}: the file contains no certificate", path = .0.display())]
    Empty(PathBuf),
    #[error("{path}: unusable certificate: {error}", path = .0.display(), error = .1)]
    Unusable(PathBuf, String),
    #[error(
        "the key in {key} does not belong to the certificate in {chain}",
        key = .0.key.display(),
        chain = .0.chain.display()
    )]
    KeyMismatch(CertificateFiles),
}

/// The node's certificates, in the operator's order.
pub struct Certificates(Vec<Certificate>);

struct Certificate {
    key: Arc<CertifiedKey>,
    /// Unix time in seconds.
    expires: i64,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} certificates", self.0.len())
    }
}

impl Certificates {
    /// Reads and checks all certificates. Blocks. A certificate that has expired or will soon is logged and
    /// still used: clients decide for themselves.
    ///
    /// # Errors
    /// The first file that cannot be used, and the reason.
    pub fn load(files: &[CertificateFiles], provider: &CryptoProvider) -> Result<Self, CertificateError> {
        files.iter().map(|files| load(files, provider)).collect::<Result<_, _>>().map(Self)
    }

    /// The Unix time in seconds at which the first certificate expires; `None` without certificates.
    pub fn first_expiry(&self) -> Option<i64> {
        self.0.iter().map(|certificate| certificate.expires).min()
    }
}

fn load(files: &CertificateFiles, provider: &CryptoProvider) -> Result<Certificate, CertificateError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |error| CertificateError::Unreadable(path, error)
    };
    let chain = CertificateDer::pem_file_iter(&files.chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(unreadable(&files.chain))?;
    let first = chain.first().ok_or_else(|| CertificateError::Empty(files.chain.clone()))?;
    let unusable = |path: &Path, error: &dyn fmt::Display| {
        CertificateError::Unusable(path.to_owned(), error.to_string())
    };
    let (_, parsed) = X509Certificate::from_der(first).map_err(|error| unusable(&files.chain, &error))?;
    let expires = parsed.validity().not_after.timestamp();
    warn_of_expiry(&files.chain, expires);
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(unreadable(&files.key))?;
    match CertifiedKey::from_der(chain, key, provider) {
        Ok(key) => Ok(Certificate { key: Arc::new(key), expires }),
        Err(rustls::Error::InconsistentKeys(_)) => Err(CertificateError::KeyMismatch(files.clone())),
        Err(error) => Err(unusable(&files.key, &error)),
    }
}

fn warn_of_expiry(path: &Path, expires: i64) {
    let now = unix_seconds();
    let path = path.display();
    match expires - now {
        ..=0 => log::warn!("{path}: the certificate has expired; most clients will refuse it"),
        1..=EXPIRES_SOON => {
            log::warn!("{path}: the certificate expires in {} days", (expires - now) / (24 * 3600));
        }
        _ => {}
    }
}

impl ResolvesServerCert for Certificates {
    /// The first certificate for the requested name whose key type the client supports. If no
    /// certificate is for that name, the first one whose key type the client supports.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let usable = || {
            let is_supported = |certificate: &&Certificate| {
                certificate.key.key.choose_scheme(hello.signature_schemes()).is_some()
            };
            self.0.iter().filter(is_supported)
        };
        let named = name.and_then(|name| usable().find(|certificate| certificate.is_for(&name)));
        named.or_else(|| usable().next()).map(|certificate| Arc::clone(&certificate.key))
    }
}

impl Certificate {
    fn is_for(&self, name: &ServerName<'_>) -> bool {
        let parsed = self.key.cert.first().and_then(|first| ParsedCertificate::try_from(first).ok());
        parsed.is_some_and(|parsed| rustls::client::verify_server_name(&parsed, name).is_ok())
    }
}
