//! TLS of control and data connections (RFC 4217): configuration, handshakes, and the proof that a data
//! connection belongs to a session.

pub mod certificates;
mod handshake;
mod identity;
pub mod kernel;
pub mod records;
pub mod tickets;
pub mod trust;

use std::{
    io,
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use common::{
    certificate::ClientCertificate, clock, process::logging::chain, registry::Registry, session::SessionId,
};
use rustls::{
    CommonState, HandshakeKind, ProtocolVersion, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    server::NoServerSessionStorage,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

pub use self::certificates::{CertificateError, CertificateFiles};
use self::{
    certificates::Certificates,
    kernel::KernelTls,
    records::Records,
    tickets::{ConnectionKind, SessionTickets, Tickets},
    trust::{ClientTrust, RecordingVerifier, TrustFiles},
};
use crate::metrics;

/// The only ALPN protocol accepted (IANA registry). The handshake of a client that offers only others
/// fails: an attacker may have redirected it here (ALPACA, CVE-2021-3618).
const ALPN_FTP: &[u8] = b"ftp";

/// Interval between checks of the certificate files for changes.
const WATCH_INTERVAL: Duration = Duration::from_secs(10);

/// Interval between requests for ticket keys. A node may learn of a new key this late.
const TICKET_KEY_INTERVAL: Duration = Duration::from_secs(60);

/// Tickets sent on a data connection: one replaces the ticket it used, one is spare. They go out with the
/// node's first record. In an upload that record is close_notify, which the client may never read.
const DATA_CONNECTION_TICKETS: usize = 2;

/// Largest number of tickets that a client can request (RFC 9149).
const MAX_REQUESTED_TICKETS: usize = 32;

/// Policy for the encryption of a kind of connection: forbidden, allowed or required.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsPolicy {
    Off,
    #[default]
    Optional,
    Required,
}

impl FromStr for TlsPolicy {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "optional" => Ok(Self::Optional),
            "required" => Ok(Self::Required),
            _ => Err("must be off, optional or required"),
        }
    }
}

/// Policy for the reuse of a control connection's TLS session by its data connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionReuse {
    /// A data connection that does not resume is refused.
    Required,
    /// A data connection that does not resume is counted. With TLS 1.2 it is also refused if an earlier
    /// data connection of the session has resumed.
    Preferred,
    /// No check.
    Off,
}

impl FromStr for SessionReuse {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "required" => Ok(Self::Required),
            "preferred" => Ok(Self::Preferred),
            "off" => Ok(Self::Off),
            _ => Err("must be required, preferred or off"),
        }
    }
}

/// The operator's settings for TLS.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    pub certificates: Vec<CertificateFiles>,
    /// Authorities and revocation lists for client certificates; `None`: no certificates are requested.
    pub client_trust: Option<TrustFiles>,
    pub minimum: &'static SupportedProtocolVersion,
    pub control: TlsPolicy,
    pub data: TlsPolicy,
    pub reuse: SessionReuse,
    /// True if an upload that ends without close_notify counts as incomplete.
    pub close_notify_required: bool,
    pub kernel: KernelTls,
    /// Number of TLS 1.3 tickets sent on a control connection.
    pub tickets: usize,
    /// Interval between new ticket keys.
    pub ticket_rotation: Duration,
    /// Time after a full handshake during which control connections may resume its TLS session.
    pub resumption_max_age: Duration,
    pub handshake_timeout: Duration,
}

/// TLS configuration, certificates and ticket keys of the node.
pub struct Tls {
    pub settings: TlsSettings,
    configs: ArcSwap<Configs>,
    provider: Arc<CryptoProvider>,
    tickets: Arc<Tickets>,
}

/// rustls configurations for control and for data connections, which differ in the number of tickets.
struct Configs {
    control: Arc<ServerConfig>,
    data: Arc<ServerConfig>,
    /// `None`: no client certificates are requested.
    trust: Option<Arc<ClientTrust>>,
    /// The Unix time in seconds at which the first certificate of the node expires.
    expiry: Option<i64>,
}

impl ConnectionKind {
    fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Data => "data",
        }
    }
}

/// Failure to set up TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("{path}: {reason}", path = .0.display(), reason = .1)]
    Authorities(PathBuf, String),
    #[error("{path}: {reason}", path = .0.display(), reason = .1)]
    Revocations(PathBuf, String),
    #[error("the TLS settings contradict each other")]
    Settings(#[from] rustls::Error),
}

/// Result of a finished handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    pub version: &'static str,
    pub cipher: String,
    /// The FTP session whose TLS session was resumed.
    pub resumed: Option<SessionId>,
    /// The verified client certificate, if there is one.
    pub certificate: Option<ClientCertificate>,
}

impl Tls {
    /// Reads certificates and authorities. Blocks.
    ///
    /// # Errors
    /// The first file that cannot be used, and the reason.
    pub fn load(settings: TlsSettings) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let tickets = Tickets::new(settings.ticket_rotation, settings.resumption_max_age);
        let configs = configs(&settings, &provider)?;
        Ok(Self { settings, configs: ArcSwap::from_pointee(configs), provider, tickets })
    }

    /// Reads the files again. Existing connections are not affected. Blocks.
    ///
    /// # Errors
    /// As [`Self::load`]; the configuration in use then stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        let configs = configs(&self.settings, &self.provider)?;
        self.configs.store(Arc::new(configs));
        Ok(())
    }

    /// The Unix time in seconds at which the first certificate of the node expires.
    pub fn certificate_expiry(&self) -> Option<i64> {
        self.configs.load().expiry
    }

    /// Performs the handshake of a control connection of `session`. The tickets carry the session's id,
    /// so that a data connection proves its session by resuming with one of them.
    ///
    /// # Errors
    /// The handshake failed or took too long.
    pub async fn accept<IO>(&self, stream: IO, session: SessionId) -> io::Result<(TlsStream<IO>, Handshake)>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let (config, tickets) = self.config(Some(session), ConnectionKind::Control)?;
        let accepted = async {
            let stream = TlsAcceptor::from(config).accept(stream).await?;
            let handshake = Handshake::of(stream.get_ref().1, &tickets);
            Ok((stream, handshake))
        };
        self.time_and_count(ConnectionKind::Control, accepted).await
    }

    /// Performs the handshake of a data connection of `session`.
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub async fn accept_data(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        session: SessionId,
    ) -> io::Result<(Records, Handshake)> {
        self.accept_data_of(stream, Some(session)).await
    }

    /// Performs the handshake of a data connection whose session is not known before. The resumed TLS
    /// session identifies it. The client gets no new tickets.
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub async fn accept_unclaimed_data(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> io::Result<(Records, Handshake)> {
        self.accept_data_of(stream, None).await
    }

    async fn accept_data_of(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        session: Option<SessionId>,
    ) -> io::Result<(Records, Handshake)> {
        let (config, tickets) = self.config(session, ConnectionKind::Data)?;
        let accepted = handshake::accept(stream, config, |connection| {
            let handshake = Handshake::of(connection, &tickets);
            // Tickets prove the session, so only a client that has proved it gets new ones.
            let is_proved = session.is_some() && handshake.resumed == session;
            (handshake, is_proved)
        });
        self.time_and_count(ConnectionKind::Data, accepted).await
    }

    /// Returns true if the kernel encrypts downloads.
    pub fn kernel_seals(&self) -> bool {
        self.settings.kernel == KernelTls::Auto && kernel::is_available()
    }

    fn config(
        &self,
        session: Option<SessionId>,
        kind: ConnectionKind,
    ) -> io::Result<(Arc<ServerConfig>, Arc<SessionTickets>)> {
        let configs = self.configs.load();
        let verifier = configs.trust.as_ref().map(|trust| RecordingVerifier::new(Arc::clone(trust)));
        let tickets = SessionTickets::new(Arc::clone(&self.tickets), session, kind, verifier.clone());
        let tickets = Arc::new(tickets);
        let shared = configs.of(kind);
        // Each connection needs its own ticketer, which knows the session. The copy is a few pointers.
        let mut config = match verifier {
            None => ServerConfig::clone(&shared),
            Some(verifier) => with_verifier(&shared, verifier, &self.settings).map_err(io::Error::other)?,
        };
        config.ticketer = Arc::clone(&tickets) as _;
        Ok((Arc::new(config), tickets))
    }

    /// Runs a handshake within `handshake_timeout`, and counts its result in the metrics.
    async fn time_and_count<T>(
        &self,
        kind: ConnectionKind,
        accepted: impl Future<Output = io::Result<(T, Handshake)>>,
    ) -> io::Result<(T, Handshake)> {
        let kind = kind.name();
        match timeout(self.settings.handshake_timeout, accepted).await {
            Ok(Ok((connection, handshake))) => {
                let result = if handshake.resumed.is_some() { "resumed" } else { "full" };
                metrics::tls_handshake(kind, handshake.version, result);
                Ok((connection, handshake))
            }
            Ok(Err(error)) => {
                metrics::tls_handshake(kind, "none", "failed");
                Err(error)
            }
            Err(elapsed) => {
                metrics::tls_handshake(kind, "none", "late");
                Err(elapsed.into())
            }
        }
    }

    /// Fetches the cluster's ticket keys, and starts a task that keeps them up to date.
    pub async fn share_ticket_keys(self: &Arc<Self>, registry: Registry) {
        self.tickets.set_keys(&registry.ticket_keys(self.settings.ticket_rotation).await);
        let tls = Arc::clone(self);
        tokio::spawn(async move {
            let period = TICKET_KEY_INTERVAL.min(tls.settings.ticket_rotation);
            loop {
                tokio::time::sleep(period).await;
                tls.tickets.set_keys(&registry.ticket_keys(tls.settings.ticket_rotation).await);
            }
        });
    }

    /// Starts a task that reloads the files when one has changed.
    pub fn watch_files(self: &Arc<Self>) {
        let tls = Arc::clone(self);
        tokio::spawn(async move {
            let mut seen = None;
            loop {
                let reader = Arc::clone(&tls);
                let Ok(now) = tokio::task::spawn_blocking(move || reader.file_times()).await else { return };
                if seen.as_ref().is_some_and(|seen| *seen != now) {
                    tls.reload_and_log().await;
                }
                seen = Some(now);
                tokio::time::sleep(WATCH_INTERVAL).await;
            }
        });
    }

    /// Reads the files again and logs the result.
    pub async fn reload_and_log(self: &Arc<Self>) {
        let tls = Arc::clone(self);
        match tokio::task::spawn_blocking(move || tls.reload()).await {
            Ok(Ok(())) => {
                metrics::tls_reloaded(true);
                log::info!("reloaded the certificates");
            }
            Ok(Err(error)) => {
                metrics::tls_reloaded(false);
                log::error!(
                    "could not reload the certificates, the previous ones stay in use: {}",
                    chain(&error)
                );
            }
            // The runtime is shutting down.
            Err(_) => {}
        }
    }

    /// Modification times of all files; `None` for a file that cannot be read.
    fn file_times(&self) -> Vec<Option<SystemTime>> {
        let pairs = self.settings.certificates.iter().flat_map(|files| [&files.chain, &files.key]);
        let trust = self.settings.client_trust.iter();
        let files = pairs.chain(trust.flat_map(|files| files.revocations.iter().chain([&files.authorities])));
        files.map(|file| file.metadata().and_then(|metadata| metadata.modified()).ok()).collect()
    }
}

impl Configs {
    fn of(&self, kind: ConnectionKind) -> Arc<ServerConfig> {
        Arc::clone(match kind {
            ConnectionKind::Control => &self.control,
            ConnectionKind::Data => &self.data,
        })
    }
}

fn configs(settings: &TlsSettings, provider: &Arc<CryptoProvider>) -> Result<Configs, TlsError> {
    let certificates = Certificates::load(&settings.certificates, provider)?;
    let expiry = certificates.first_expiry();
    metrics::tls_certificates(expiry);
    let trust = settings.client_trust.as_ref().map(|files| ClientTrust::load(files, provider)).transpose()?;
    let mut control = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions(settings))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificates));
    control.alpn_protocols = vec![ALPN_FTP.to_vec()];
    // A TLS 1.3 client uses a ticket only once, and each data connection needs one.
    control.send_tls13_tickets = settings.tickets;
    control.max_tls13_tickets = settings.tickets.max(MAX_REQUESTED_TICKETS);
    // No session cache: TLS 1.2 sessions in it would be resumed without the checks that tickets get.
    control.session_storage = Arc::new(NoServerSessionStorage {});
    let mut data = control.clone();
    data.send_tls13_tickets = settings.tickets.min(DATA_CONNECTION_TICKETS);
    // `records` encrypts data connections and needs the keys.
    data.enable_secret_extraction = true;
    Ok(Configs { control: Arc::new(control), data: Arc::new(data), trust, expiry })
}

fn versions(settings: &TlsSettings) -> &'static [&'static SupportedProtocolVersion] {
    static ALL: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    static NEWEST: [&SupportedProtocolVersion; 1] = [&TLS13];
    if settings.minimum.version == ProtocolVersion::TLSv1_3 { &NEWEST } else { &ALL }
}

/// A copy of `shared` with the connection's own verifier, which rustls accepts only while it builds a
/// configuration.
fn with_verifier(
    shared: &ServerConfig,
    verifier: RecordingVerifier,
    settings: &TlsSettings,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(shared.crypto_provider()))
        .with_protocol_versions(versions(settings))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::clone(&shared.cert_resolver));
    config.alpn_protocols.clone_from(&shared.alpn_protocols);
    config.send_tls13_tickets = shared.send_tls13_tickets;
    config.max_tls13_tickets = shared.max_tls13_tickets;
    config.session_storage = Arc::clone(&shared.session_storage);
    config.enable_secret_extraction = shared.enable_secret_extraction;
    Ok(config)
}

/// The current time in Unix seconds, signed as times in certificates and tickets are.
fn unix_seconds() -> i64 {
    i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX)
}

impl Handshake {
    /// The result of the finished handshake of `connection`.
    fn of(connection: &CommonState, tickets: &SessionTickets) -> Self {
        let version = match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "unknown",
        };
        let cipher = connection.negotiated_cipher_suite();
        let cipher = cipher.map_or_else(String::new, |suite| format!("{:?}", suite.suite()));
        let certificate = connection.peer_certificates().and_then(|chain| chain.first());
        Self {
            version,
            cipher,
            // Not always if a ticket was opened: rustls may still decide against a resumption.
            resumed: match connection.handshake_kind() {
                Some(HandshakeKind::Resumed) => tickets.opened(),
                _ => None,
            },
            certificate: certificate.and_then(identity::describe),
        }
    }
}
