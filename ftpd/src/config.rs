//! `Config`: the settings of [`crate::settings`], parsed and checked. No other code reads settings.

mod limits;
mod network;

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use common::{
    audit::AuditOptions,
    health::{REGISTRY, Requirement},
    node::NodeName,
    process::{http::ConnectionLimits, logging::LogFormat},
    registry::{RedisOptions, RedisServers, WhenAway},
    settings::{SettingsError, Values},
};

pub use self::{
    limits::{Limits, Timeouts},
    network::Network,
};
use crate::{
    auth::{
        Authentication,
        http::{self, AuthdUrl},
        local::LocalUsers,
    },
    health::Readiness,
    jail::{LockMode, Modes},
    representation::AsciiConversion,
    tls::{CertificateFiles, TlsPolicy, TlsSettings, trust::TrustFiles},
};

/// All settings, checked.
#[derive(Debug)]
pub struct Config {
    pub node_name: NodeName,
    /// The host's boot ID, if a setting gives it.
    pub boot_id: Option<String>,
    pub network: Network,
    pub storage: Storage,
    pub authentication: Authentication,
    /// `None`: the node offers no TLS.
    pub tls: Option<TlsSettings>,
    /// `None`: the registry is in the memory of this process.
    pub redis: Option<RedisOptions>,
    pub limits: Limits,
    pub timeouts: Timeouts,
    /// Text of the 220 reply.
    pub greeting: String,
    pub ascii_conversion: AsciiConversion,
    /// `None`: metrics and health are not served.
    pub admin_listen: Option<SocketAddr>,
    pub admin_limits: ConnectionLimits,
    pub readiness: Readiness,
    pub log: LogSettings,
    /// `None`: no events.
    pub events_file: Option<PathBuf>,
}

#[derive(Debug)]
pub struct Storage {
    pub root: PathBuf,
    /// True if a missing root is created: on a standalone node only. In a cluster the root is a mount, and
    /// files in a directory in its place would be invisible to the other nodes.
    pub create_root: bool,
    /// True if a missing home is created at the login.
    pub create_homes: bool,
    /// Permissions of new files and directories.
    pub modes: Modes,
    /// True if an upload is flushed to the disk before its 226.
    pub sync_uploads: bool,
    pub locks: LockMode,
    pub self_test: SelfTestMode,
    /// Time that a complete atomic upload waits before it is published.
    pub settle_time: Duration,
    pub upload_digest: UploadDigest,
    /// True if listings show links as the files that they lead to.
    pub resolve_links: bool,
    /// Levels of directories that LIST -R shows.
    pub list_depth: usize,
    /// Entries that a listing sorts.
    pub sorted_entries: usize,
    /// Bytes of memory of all sorted listings together.
    pub listing_memory: u64,
    /// Entries that STAT with a path shows.
    pub stat_entries: usize,
    /// Interval of home counts.
    pub quota_rescan: Duration,
    /// Age, since its last change, at which a partial file is removed. `None`: never.
    pub partial_lifetime: Option<Duration>,
}

/// What follows from the test of the storage at the start (setting `storage_self_test`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfTestMode {
    /// The node does not start where uploads in atomic mode would not keep their promise.
    Require,
    /// It logs an error and starts.
    Warn,
    /// There is no test.
    Off,
}

/// The text is not a [`SelfTestMode`].
#[derive(Debug, thiserror::Error)]
#[error("must be 'require', 'warn' or 'off'")]
pub struct InvalidSelfTestMode;

impl FromStr for SelfTestMode {
    type Err = InvalidSelfTestMode;

    fn from_str(text: &str) -> Result<Self, InvalidSelfTestMode> {
        match text {
            "require" => Ok(Self::Require),
            "warn" => Ok(Self::Warn),
            "off" => Ok(Self::Off),
            _ => Err(InvalidSelfTestMode),
        }
    }
}

/// The hash of complete uploads (`upload_digest`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadDigest {
    Off,
    /// SHA-256 for the audit trail and for events.
    Recorded,
    /// The client is told, too.
    InReply,
}

impl FromStr for UploadDigest {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "sha256" => Ok(Self::Recorded),
            "sha256_in_reply" => Ok(Self::InReply),
            _ => Err("must be 'off', 'sha256' or 'sha256_in_reply'"),
        }
    }
}

#[derive(Debug)]
pub struct LogSettings {
    /// A filter of env_logger.
    pub level: String,
    pub format: LogFormat,
    /// `None`: no transfer log.
    pub transfer_log: Option<PathBuf>,
    pub audit: AuditOptions,
}

impl Config {
    /// # Errors
    /// A value cannot be used, or two values contradict each other.
    pub fn new(values: &Values) -> Result<Self, SettingsError> {
        let standalone = values.required("standalone")?;
        let authentication = authentication(values, standalone)?;
        let node_name = node_name(values)?;
        let redis = redis(values, standalone)?;
        let network = network::network(values, &authentication, &node_name, redis.as_ref())?;
        Ok(Self {
            node_name,
            boot_id: values.optional("boot_id")?,
            storage: Storage {
                root: values.required("root")?,
                create_root: standalone,
                create_homes: values.required("create_homes")?,
                modes: Modes { file: mode(values, "file_mode")?, directory: mode(values, "directory_mode")? },
                sync_uploads: values.required("sync_uploads")?,
                locks: values.required("storage_locks")?,
                self_test: values.required("storage_self_test")?,
                settle_time: values.duration("settle_time")?,
                upload_digest: values.required("upload_digest")?,
                resolve_links: values.required("resolve_links")?,
                list_depth: values.required("list_depth")?,
                sorted_entries: values.required("max_sorted_entries")?,
                listing_memory: values.required("max_listing_memory")?,
                stat_entries: values.required("max_stat_entries")?,
                quota_rescan: values.duration("quota_rescan")?,
                partial_lifetime: values.duration_or_off("partial_lifetime")?,
            },
            redis,
            tls: tls(values)?,
            limits: limits::limits(values)?,
            timeouts: limits::timeouts(values)?,
            greeting: values.required("greeting")?,
            ascii_conversion: values.required("ascii_conversion")?,
            admin_listen: values.optional("admin_listen")?,
            admin_limits: ConnectionLimits {
                connections: limits::count(values, "admin_max_connections")? as usize,
                header_timeout: values.duration("admin_header_timeout")?,
            },
            readiness: readiness(values)?,
            log: LogSettings {
                level: values.log_level()?,
                format: values.required("log_format")?,
                transfer_log: values.optional("transfer_log")?,
                audit: AuditOptions::new(values)?,
            },
            events_file: values.optional("events_file")?,
            authentication,
            network,
        })
    }
}

fn node_name(values: &Values) -> Result<NodeName, SettingsError> {
    if let Some(name) = values.optional("node_name")? {
        return Ok(name);
    }
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    host.and_then(|name| name.parse().ok())
        .ok_or_else(|| values.missing("node_name", "the host name is not a valid name of a node"))
}

fn authentication(values: &Values, standalone: bool) -> Result<Authentication, SettingsError> {
    let users = LocalUsers::read(values)?;
    let urls: Vec<String> = values.list("authd_urls")?;
    if standalone {
        if !urls.is_empty() {
            return Err(values.invalid("authd_urls", "a standalone node does not use authd"));
        }
        if users.is_empty() {
            return Ok(Authentication::Demo);
        }
        return Ok(Authentication::Users(users));
    }
    if !users.is_empty() {
        return Err(SettingsError::Conflict(
            "user, user_file: only a standalone node has its own users; give --standalone, or create the \
             users in authd"
                .to_owned(),
        ));
    }
    if urls.is_empty() {
        return Err(values
            .missing("authd_urls", "authd verifies the logins of a node, unless the node is standalone"));
    }
    if urls.iter().any(|url| url.contains('@')) {
        // The text before the @ may hold a password, so the message does not repeat the URL.
        let reason = "authd_urls: a URL cannot hold a user; authd asks for the token of authd_token_file";
        return Err(SettingsError::Conflict(reason.to_owned()));
    }
    let parse = |url: &String| {
        url.parse::<AuthdUrl>()
            .map_err(|error| values.invalid("authd_urls", format_args!("{url:?}: {error}")))
    };
    let urls = urls.iter().map(parse).collect::<Result<_, _>>()?;
    let token = values.secret("authd_token_file")?;
    let authorization = token.map(|token| {
        http::authorization(&token).ok_or_else(|| {
            values.invalid(
                "authd_token_file",
                "the token has characters that are not allowed in an HTTP header",
            )
        })
    });
    Ok(Authentication::Authd {
        urls,
        authorization: authorization.transpose()?,
        timeout: values.duration("authd_timeout")?,
    })
}

fn redis(values: &Values, standalone: bool) -> Result<Option<RedisOptions>, SettingsError> {
    let Some(servers) = RedisServers::read(values)? else {
        return if standalone {
            Ok(None)
        } else {
            Err(values.missing("redis_url", "the registry of a cluster is in Redis (or redis_sentinels)"))
        };
    };
    Ok(Some(RedisOptions {
        servers,
        prefix: values.required("redis_prefix")?,
        timeout: values.duration("redis_timeout")?,
        lease: values.duration("node_lease")?,
        when_away: values.required("registry_away")?,
        replicas: values.required("redis_replicas")?,
        data_connect_timeout: values.duration("data_connect_timeout")?,
        relay_key_rotation: values.duration("relay_key_rotation")?,
    }))
}

fn readiness(values: &Values) -> Result<Readiness, SettingsError> {
    let mut requirements: Vec<Requirement> = values.list("readiness_requires")?;
    let refuses = values.required::<WhenAway>("registry_away")? == WhenAway::Refuse;
    if refuses && !values.is_given("readiness_requires") {
        requirements.push(Requirement::Dependency(REGISTRY));
    }
    Ok(Readiness {
        requirements,
        interval: values.duration("readiness_interval")?,
        timeout: values.duration("readiness_timeout")?,
    })
}

fn tls(values: &Values) -> Result<Option<TlsSettings>, SettingsError> {
    let chains: Vec<PathBuf> = values.list("tls_certificates")?;
    let keys: Vec<PathBuf> = values.list("tls_keys")?;
    let (control, data) = (values.required("tls")?, values.required("tls_data")?);
    if chains.is_empty() {
        if control == TlsPolicy::Required
            || data == TlsPolicy::Required
            || values.is_given("implicit_tls_port")
        {
            return Err(values.missing("tls_certificates", "another setting requires TLS"));
        }
        return Ok(None);
    }
    if !keys.is_empty() && keys.len() != chains.len() {
        let reason = format_args!("{} keys for {} certificates", keys.len(), chains.len());
        return Err(values.invalid("tls_keys", reason));
    }
    if control == TlsPolicy::Off {
        if data == TlsPolicy::Required || values.is_given("implicit_tls_port") {
            return Err(
                values.invalid("tls", "data connections can be encrypted only if the control connection is")
            );
        }
        return Ok(None);
    }
    let keys = if keys.is_empty() { chains.clone() } else { keys };
    let certificates = chains.into_iter().zip(keys);
    let minimum: String = values.required("tls_minimum")?;
    Ok(Some(TlsSettings {
        certificates: certificates.map(|(chain, key)| CertificateFiles { chain, key }).collect(),
        client_trust: client_trust(values)?,
        minimum: match minimum.as_str() {
            "1.2" => &rustls::version::TLS12,
            "1.3" => &rustls::version::TLS13,
            _ => return Err(values.invalid("tls_minimum", "it is neither 1.2 nor 1.3")),
        },
        control,
        data,
        reuse: values.required("tls_data_reuse")?,
        close_notify_required: values.required("tls_close_notify")?,
        kernel: values.required("kernel_tls")?,
        tickets: values.required("tls_tickets")?,
        ticket_rotation: values.duration("tls_ticket_rotation")?,
        resumption_max_age: values.duration("tls_resumption_max_age")?,
        handshake_timeout: values.duration("tls_handshake_timeout")?,
    }))
}

fn client_trust(values: &Values) -> Result<Option<TrustFiles>, SettingsError> {
    let revocations: Vec<PathBuf> = values.list("tls_client_crls")?;
    match values.optional("tls_client_ca")? {
        Some(authorities) => Ok(Some(TrustFiles { authorities, revocations })),
        None if revocations.is_empty() => Ok(None),
        None => {
            Err(values
                .missing("tls_client_ca", "tls_client_crls needs the authorities that its lists belong to"))
        }
    }
}

fn mode(values: &Values, key: &str) -> Result<u32, SettingsError> {
    let text: String = values.required(key)?;
    match u32::from_str_radix(&text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(values.invalid(key, "not an octal number from 0 to 0777")),
    }
}
