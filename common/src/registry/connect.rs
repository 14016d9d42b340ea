//! Opening a connection to a Redis server or a sentinel: TCP, TLS or a Unix socket, then the login.
//!
//! The driver could open TLS connections itself. It would read the authorities of the system for each of
//! them, on a thread that serves connections, and fail where one of those cannot be read, although
//! `redis_ca_file` names others. So the link makes the stream, with the TLS library of the data connections.

use std::{
    error::Error,
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use futures_util::future::select_ok;
use redis::{AsyncConnectionConfig, RedisError, RedisResult, aio::MultiplexedConnection};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream, lookup_host},
    task::spawn_blocking,
};
use tokio_rustls::TlsConnector;

use super::options::{RedisEndpoint, RedisUrl};
use crate::sync::lock;

/// A stream to a server, of any kind.
trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// The files for TLS connections to Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisTlsFiles {
    /// The authorities that sign the certificates of Redis. `None`: those that this system trusts.
    pub authorities: Option<PathBuf>,
    /// The certificate chain and the key with which this process proves its identity to Redis.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A file for TLS that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct RedisTlsError {
    /// The setting that names the file.
    pub setting: &'static str,
    pub reason: String,
}

/// TLS to Redis. Each connection reads the files again, so renewed certificates need no restart.
#[derive(Clone)]
pub struct RedisTls(Arc<TlsInner>);

struct TlsInner {
    files: RedisTlsFiles,
    /// From the last time that the files could be used.
    last: Mutex<Arc<ClientConfig>>,
}

impl RedisTls {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// A file cannot be read, or has no certificate or key that can be used.
    pub fn open(files: RedisTlsFiles) -> Result<Self, RedisTlsError> {
        let last = Mutex::new(Arc::new(files.load()?));
        Ok(Self(Arc::new(TlsInner { files, last })))
    }

    async fn connector(&self) -> TlsConnector {
        let inner = Arc::clone(&self.0);
        let loaded = spawn_blocking(move || inner.files.load()).await;
        let mut last = lock(&self.0.last);
        match loaded {
            Ok(Ok(config)) => *last = Arc::new(config),
            Ok(Err(RedisTlsError { setting, reason })) => {
                log::warn!(setting, error = reason.as_str(); "the last certificates for Redis stay in use");
            }
            // The runtime ends.
            Err(_) => {}
        }
        TlsConnector::from(Arc::clone(&last))
    }
}

impl fmt::Debug for RedisTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.files.fmt(f)
    }
}

impl RedisTlsFiles {
    fn load(&self) -> Result<ClientConfig, RedisTlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        // aws-lc has the cipher suites of both versions.
        let builder = builder.expect("the provider supports TLS 1.2 and 1.3");
        let builder = builder.with_root_certificates(self.roots()?);
        let Some((chain, key)) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let failed = |setting: &'static str, path: &PathBuf, error: &dyn fmt::Display| RedisTlsError {
            setting,
            reason: format!("{}: {error}", path.display()),
        };
        let certificates = CertificateDer::pem_file_iter(chain)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| failed("redis_client_certificate", chain, &error))?;
        let private =
            PrivateKeyDer::from_pem_file(key).map_err(|error| failed("redis_client_key", key, &error))?;
        builder
            .with_client_auth_cert(certificates, private)
            .map_err(|error| failed("redis_client_certificate", chain, &error))
    }

    fn roots(&self) -> Result<RootCertStore, RedisTlsError> {
        let failed = |reason| RedisTlsError { setting: "redis_ca_file", reason };
        let mut roots = RootCertStore::empty();
        match &self.authorities {
            Some(path) => {
                let in_file = |error: &dyn fmt::Display| failed(format!("{}: {error}", path.display()));
                let found = CertificateDer::pem_file_iter(path).map_err(|error| in_file(&error))?;
                for certificate in found {
                    let certificate = certificate.map_err(|error| in_file(&error))?;
                    roots.add(certificate).map_err(|error| in_file(&error))?;
                }
                if roots.is_empty() {
                    return Err(in_file(&"the file has no certificate"));
                }
            }
            None => {
                // Some systems list authorities that rustls does not understand.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(failed("this system trusts no authority; name the file of one".to_owned()));
                }
            }
        }
        Ok(roots)
    }
}

/// The error of a TLS handshake.
#[derive(Debug, thiserror::Error)]
#[error("TLS: {0}")]
pub(super) struct HandshakeFailed(io::Error);

/// Returns true if the TLS handshake failed: the certificates do not fit, or the server has no TLS there.
pub(super) fn is_handshake_failure(error: &RedisError) -> bool {
    // The driver keeps the error behind an `Arc`.
    let kept = error.source().and_then(|source| source.downcast_ref::<Arc<dyn Error + Send + Sync>>());
    let io = kept.and_then(|kept| kept.downcast_ref::<io::Error>());
    io.and_then(io::Error::get_ref).is_some_and(|inner| inner.is::<HandshakeFailed>())
}

/// Connects and logs in. The caller limits the time.
pub(super) async fn connect(url: &RedisUrl, tls: Option<&RedisTls>) -> RedisResult<MultiplexedConnection> {
    let stream: Box<dyn Duplex> = match url.endpoint() {
        RedisEndpoint::Unix(path) => Box::new(UnixStream::connect(path).await?),
        RedisEndpoint::Tcp(host, port) => {
            let tcp = connect_tcp(host, port).await?;
            match tls.filter(|_| url.is_encrypted()) {
                None => Box::new(tcp),
                Some(tls) => {
                    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                    let stream = tls.connector().await.connect(name, tcp).await;
                    Box::new(stream.map_err(|error| io::Error::other(HandshakeFailed(error)))?)
                }
            }
        }
    };
    let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    let (connection, driver) = MultiplexedConnection::new_with_config(url.login(), stream, config).await?;
    // It ends with the last clone of the connection.
    tokio::spawn(driver);
    Ok(connection)
}

/// Connects to the first address that answers: a name may have an IPv6 address that no route leads to.
async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let attempts: Vec<_> =
        lookup_host((host, port)).await?.map(|address| Box::pin(TcpStream::connect(address))).collect();
    if attempts.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    let (stream, _) = select_ok(attempts).await?;
    // Requests are small, and a task waits for each of them: Nagle's algorithm would only delay them.
    stream.set_nodelay(true)?;
    Ok(stream)
}
