//! TLS of the doctor: it notes what is wrong with a certificate, and goes on.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use common::{clock::unix_seconds, sync::lock};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};

use super::findings::Finding;

/// The authorities that the doctor trusts.
#[derive(Clone)]
pub(crate) struct Trust {
    verifier: Option<Arc<WebPkiServerVerifier>>,
}

/// What a full handshake showed of the server's certificate.
#[derive(Clone, Debug)]
pub(crate) struct SeenCertificate {
    pub(crate) leaf: Vec<u8>,
    /// Why a client would refuse it.
    pub(crate) fault: Option<(Finding, String)>,
    /// Seconds until it expires. `None`: it cannot be read.
    pub(crate) seconds_left: Option<i64>,
}

/// The TLS of one session: its tickets, and the certificate of the last full handshake.
#[derive(Clone)]
pub(crate) struct SessionTls {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
    recorder: Arc<Recorder>,
}

impl Trust {
    /// Trusts the authorities of the file, or else those of this system.
    pub(crate) fn new(file: Option<&Path>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        match file {
            Some(path) => {
                let shown = path.display();
                let found =
                    CertificateDer::pem_file_iter(path).map_err(|error| format!("{shown}: {error}"))?;
                for certificate in found {
                    let certificate = certificate.map_err(|error| format!("{shown}: {error}"))?;
                    roots.add(certificate).map_err(|error| format!("{shown}: {error}"))?;
                }
                if roots.is_empty() {
                    return Err(format!("{shown} has no certificate in PEM"));
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        // Without any authority, no certificate is trusted.
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().ok();
        Ok(Self { verifier })
    }

    /// The TLS of a new session, without tickets of earlier ones.
    pub(crate) fn session(&self, host: &str) -> Result<SessionTls, String> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| format!("{host} is neither a host name nor an address"))?;
        let recorder = Arc::new(Recorder {
            verifier: self.verifier.clone(),
            seen: Mutex::new(None),
            name: name.clone(),
        });
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&recorder) as _)
            .with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(64);
        Ok(SessionTls { config: Arc::new(config), name, recorder })
    }
}

impl SessionTls {
    /// The certificate of the last full handshake.
    pub(crate) fn certificate(&self) -> Option<SeenCertificate> {
        lock(&self.recorder.seen).clone()
    }
}

/// Notes the verdict on a certificate and accepts it.
#[derive(Debug)]
struct Recorder {
    verifier: Option<Arc<WebPkiServerVerifier>>,
    seen: Mutex<Option<SeenCertificate>>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let result = match &self.verifier {
            Some(verifier) => {
                verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            None => Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
        };
        let seen = SeenCertificate {
            leaf: end_entity.to_vec(),
            fault: result.err().map(|error| fault(&error, &self.name)),
            seconds_left: seconds_left(end_entity),
        };
        *lock(&self.seen) = Some(seen);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let provider = aws_lc_rs::default_provider();
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let provider = aws_lc_rs::default_provider();
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The finding for a certificate that is refused.
fn fault(error: &Error, name: &ServerName<'_>) -> (Finding, String) {
    let name = name.to_str();
    match error {
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            (Finding::CertificateExpired, "the certificate has expired".to_owned())
        }
        Error::InvalidCertificate(CertificateError::NotValidForName) => {
            (Finding::CertificateWrongName, format!("the certificate is not for {name}"))
        }
        Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) => {
            let names = presented.join(", ");
            (Finding::CertificateWrongName, format!("the certificate is not for {name}, only for {names}"))
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => (
            Finding::CertificateUntrusted,
            "no authority that this host trusts has signed the certificate, or the chain lacks an \
             intermediate one"
                .to_owned(),
        ),
        other => (Finding::CertificateUntrusted, other.to_string()),
    }
}

fn seconds_left(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp() - i64::try_from(unix_seconds()).ok()?)
}
