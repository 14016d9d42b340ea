//! TLS of control and data connections (RFC 4217): what is offered, to whom, and how it is proved
//! that a data connection belongs to a session.

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
    tickets::{Purpose, SessionTickets, Tickets},
    trust::{Trust, TrustFiles, Witness},
};
use crate::metrics;

/// The one protocol that is spoken here (IANA's ALPN registry). A client that offers others only
/// has been led astray by somebody (ALPACA, CVE-2021-3618), and its handshake fails.
const ALPN_FTP: &[u8] = b"ftp";

/// How often files are looked at for changes.
const WATCH_INTERVAL: Duration = Duration::from_secs(10);

/// How often ticket keys are asked for: a node learns of a new one this late.
const TICKET_KEY_INTERVAL: Duration = Duration::from_secs(60);

/// Whether encryption may or must be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    Off,
    #[default]
    Optional,
    Required,
}

impl FromStr for Policy {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "optional" => Ok(Self::Optional),
            "required" => Ok(Self::Required),
            _ => Err("neither off, optional nor required"),
        }
    }
}

/// Whether a data connection must resume the TLS session of its control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    Required,
    /// It is counted if it does not. With TLS 1.2 it is refused once another one of the session has.
    Preferred,
    /// Nobody looks.
    Off,
}

impl FromStr for Reuse {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "required" => Ok(Self::Required),
            "preferred" => Ok(Self::Preferred),
            "off" => Ok(Self::Off),
            _ => Err("neither required, preferred nor off"),
        }
    }
}

/// What the operator wants of TLS.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    pub certificates: Vec<CertificateFiles>,
    /// Client certificates signed by these authorities are verified.
    pub client_trust: Option<TrustFiles>,
    pub minimum: &'static SupportedProtocolVersion,
    pub control: Policy,
    pub data: Policy,
    pub reuse: Reuse,
    /// Whether an upload without close_notify at its end counts as cut off.
    pub close_notify_required: bool,
    pub kernel: KernelTls,
    pub tickets: usize,
    pub ticket_rotation: Duration,
    /// How long after a full handshake control connections may resume it.
    pub resumption_max_age: Duration,
    pub handshake_timeout: Duration,
}

/// The TLS side of the node.
pub struct Tls {
    pub settings: TlsSettings,
    configs: ArcSwap<Configs>,
    provider: Arc<CryptoProvider>,
    tickets: Arc<Tickets>,
}

/// For control and for data connections: they differ in how many tickets they send.
struct Configs {
    control: Arc<ServerConfig>,
    data: Arc<ServerConfig>,
    /// `None`: client certificates are not asked for.
    trust: Option<Arc<Trust>>,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Data => "data",
        }
    }
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("{path}: {reason}", path = .0.display(), reason = .1)]
    Authorities(PathBuf, String),
    #[error("{path}: {reason}", path = .0.display(), reason = .1)]
    Revocations(PathBuf, String),
    #[error("the settings do not fit together")]
    Settings(#[from] rustls::Error),
}

/// What is known of a finished handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    pub version: &'static str,
    pub cipher: String,
    /// The session whose TLS session was resumed.
    pub resumed: Option<SessionId>,
    /// The verified client certificate, if there is one.
    pub certificate: Option<ClientCertificate>,
}

impl Tls {
    /// Reads certificates and authorities. Blocks.
    ///
    /// # Errors
    /// The first file that cannot be used, and why.
    pub fn load(settings: TlsSettings) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let tickets = Tickets::new(settings.ticket_rotation, settings.resumption_max_age);
        let configs = configs(&settings, &provider)?;
        Ok(Self { settings, configs: ArcSwap::from_pointee(configs), provider, tickets })
    }

    /// Reads the files again. Connections that exist keep what they have. Blocks.
    ///
    /// # Errors
    /// As [`Self::load`]; what was loaded before stays in use then.
    pub fn reload(&self) -> Result<(), TlsError> {
        let configs = configs(&self.settings, &self.provider)?;
        self.configs.store(Arc::new(configs));
        Ok(())
    }

    /// Does the handshake of a control connection of `session`. Tickets sent on it carry the session's
    /// id: a data connection that resumes with one proves whose it is.
    ///
    /// # Errors
    /// It failed, or took too long.
    pub async fn accept<IO>(&self, stream: IO, session: SessionId) -> io::Result<(TlsStream<IO>, Handshake)>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let (config, tickets) = self.config(Some(session), Purpose::Control)?;
        let accepted = async {
            let stream = TlsAcceptor::from(config).accept(stream).await?;
            let handshake = Handshake::of(stream.get_ref().1, &tickets);
            Ok((stream, handshake))
        };
        self.counted(Purpose::Control, accepted).await
    }

    /// Does the handshake of a data connection of `session`.
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

    /// Does the handshake of a data connection of which only the TLS session that it resumes tells whose it
    /// is. It gets no new tickets.
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
        let (config, tickets) = self.config(session, Purpose::Data)?;
        let accepted = handshake::accept(stream, config, |connection| {
            let handshake = Handshake::of(connection, &tickets);
            // New tickets prove the session: only a client that has proved it gets them.
            let is_proved = session.is_some() && handshake.resumed == session;
            (handshake, is_proved)
        });
        self.counted(Purpose::Data, accepted).await
    }

    /// Whether the kernel shall make the records of downloads.
    pub fn kernel_seals(&self) -> bool {
        self.settings.kernel == KernelTls::Auto && kernel::is_available()
    }

    fn config(
        &self,
        session: Option<SessionId>,
        purpose: Purpose,
    ) -> io::Result<(Arc<ServerConfig>, Arc<SessionTickets>)> {
        let configs = self.configs.load();
        let witness = configs.trust.as_ref().map(|trust| Witness::new(Arc::clone(trust)));
        let tickets = SessionTickets::new(Arc::clone(&self.tickets), session, purpose, witness.clone());
        let tickets = Arc::new(tickets);
        let shared = configs.of(purpose);
        let mut config = match witness {
            // A copy of a few pointers: the connection's own ticketer is what ties it to its session.
            None => ServerConfig::clone(&shared),
            Some(witness) => with_witness(&shared, witness, &self.settings).map_err(io::Error::other)?,
        };
        config.ticketer = Arc::clone(&tickets) as _;
        Ok((Arc::new(config), tickets))
    }

    async fn counted<T>(
        &self,
        purpose: Purpose,
        accepted: impl Future<Output = io::Result<(T, Handshake)>>,
    ) -> io::Result<(T, Handshake)> {
        let kind = purpose.name();
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

    /// Keeps the ticket keys in step with the cluster's; the first time before this returns.
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

    /// Reloads when a file has changed, for as long as the process lives.
    pub fn watch_files(self: &Arc<Self>) {
        let tls = Arc::clone(self);
        tokio::spawn(async move {
            let mut seen = None;
            loop {
                let looked = Arc::clone(&tls);
                let Ok(now) = tokio::task::spawn_blocking(move || looked.modified()).await else { return };
                if seen.as_ref().is_some_and(|seen| *seen != now) {
                    tls.reload_and_tell().await;
                }
                seen = Some(now);
                tokio::time::sleep(WATCH_INTERVAL).await;
            }
        });
    }

    /// Reads the files again and says in the log what came of it.
    pub async fn reload_and_tell(self: &Arc<Self>) {
        let tls = Arc::clone(self);
        match tokio::task::spawn_blocking(move || tls.reload()).await {
            Ok(Ok(())) => {
                metrics::tls_reloaded(true);
                log::info!("certificates read again");
            }
            Ok(Err(error)) => {
                metrics::tls_reloaded(false);
                log::error!("the certificates in use stay: {}", chain(&error));
            }
            // The runtime shuts down.
            Err(_) => {}
        }
    }

    fn modified(&self) -> Vec<Option<SystemTime>> {
        let pairs = self.settings.certificates.iter().flat_map(|files| [&files.chain, &files.key]);
        let trust = self.settings.client_trust.iter();
        let files = pairs.chain(trust.flat_map(|files| files.revocations.iter().chain([&files.authorities])));
        files.map(|file| file.metadata().and_then(|metadata| metadata.modified()).ok()).collect()
    }
}

impl Configs {
    fn of(&self, purpose: Purpose) -> Arc<ServerConfig> {
        Arc::clone(match purpose {
            Purpose::Control => &self.control,
            Purpose::Data => &self.data,
        })
    }
}

fn configs(settings: &TlsSettings, provider: &Arc<CryptoProvider>) -> Result<Configs, TlsError> {
    let certificates = Certificates::load(&settings.certificates, provider)?;
    let trust = settings.client_trust.as_ref().map(|files| Trust::load(files, provider)).transpose()?;
    let mut control = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions(settings))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificates));
    control.alpn_protocols = vec![ALPN_FTP.to_vec()];
    // A client uses a ticket of TLS 1.3 once, and each data connection needs one.
    control.send_tls13_tickets = settings.tickets;
    control.max_tls13_tickets = settings.tickets.max(MOST_REQUESTED_TICKETS);
    // Sessions of TLS 1.2 that this process keeps would be resumed without any of the checks of tickets.
    control.session_storage = Arc::new(NoServerSessionStorage {});
    let mut data = control.clone();
    data.send_tls13_tickets = settings.tickets.min(TICKETS_OF_DATA_CONNECTIONS);
    // Their records are our own.
    data.enable_secret_extraction = true;
    Ok(Configs { control: Arc::new(control), data: Arc::new(data), trust })
}

fn versions(settings: &TlsSettings) -> &'static [&'static SupportedProtocolVersion] {
    static ALL: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    static NEWEST: [&SupportedProtocolVersion; 1] = [&TLS13];
    if settings.minimum.version == ProtocolVersion::TLSv1_3 { &NEWEST } else { &ALL }
}

/// `shared`, with a verifier of the connection's own: rustls sets one only when it builds a configuration.
fn with_witness(
    shared: &ServerConfig,
    witness: Witness,
    settings: &TlsSettings,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(shared.crypto_provider()))
        .with_protocol_versions(versions(settings))?
        .with_client_cert_verifier(Arc::new(witness))
        .with_cert_resolver(Arc::clone(&shared.cert_resolver));
    config.alpn_protocols.clone_from(&shared.alpn_protocols);
    config.send_tls13_tickets = shared.send_tls13_tickets;
    config.max_tls13_tickets = shared.max_tls13_tickets;
    config.session_storage = Arc::clone(&shared.session_storage);
    config.enable_secret_extraction = shared.enable_secret_extraction;
    Ok(config)
}

/// [`clock::unix_seconds`] as a signed number, as certificates and tickets hold times.
fn unix_seconds() -> i64 {
    i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX)
}

/// A data connection replaces the ticket that it used, and one more, with the first that the node has to
/// say: of an upload that is its end, which the client need not wait for.
const TICKETS_OF_DATA_CONNECTIONS: usize = 2;

/// How many tickets a client gets that asks for a number (RFC 9149).
const MOST_REQUESTED_TICKETS: usize = 32;

impl Handshake {
    /// Of a connection whose handshake is over.
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
            // A ticket that was opened counts only if the handshake went on with it.
            resumed: match connection.handshake_kind() {
                Some(HandshakeKind::Resumed) => tickets.opened(),
                _ => None,
            },
            certificate: certificate.and_then(identity::describe),
        }
    }
}
