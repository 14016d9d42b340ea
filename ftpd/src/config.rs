//! `Config`: the settings of [`crate::settings`], parsed and checked. No other code reads settings.

mod limits;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use common::{
    health::{REGISTRY, Requirement},
    node::{NodeName, PortRange},
    process::{http::ConnectionLimits, logging::LogFormat},
    registry::{RedisOptions, RedisUrl, WhenAway},
    settings::{SettingsError, Values},
};
use ipnet::IpNet;

pub use self::limits::{Limits, Timeouts};
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
}

#[derive(Debug)]
pub struct Network {
    /// Addresses of the control port and the passive ports.
    pub listen: Vec<IpAddr>,
    /// True if `listen` is the default. Only then an address family that the host lacks is left out.
    pub listen_is_default: bool,
    /// The control port; 0 takes a free one.
    pub port: u16,
    /// The control port of implicit FTPS. `None`: not offered.
    pub implicit_tls_port: Option<u16>,
    /// The passive port range of the cluster.
    pub passive_ports: PortRange,
    /// This node's part of `passive_ports`.
    pub slice: PortRange,
    /// The address that PASV announces. `None`: the address that the client reached.
    pub external_address: Option<IpAddr>,
    /// Networks of clients to which PASV does not announce `external_address`.
    pub internal_networks: Vec<IpNet>,
    /// Networks of the balancers, which must send a PROXY header.
    pub trusted_balancers: Vec<IpNet>,
    /// True if PORT and EPRT are offered.
    pub active_mode: bool,
    /// Redis, authd and this node's admin port, as far as the settings give their IP addresses. Active mode
    /// must not connect to them.
    pub services: Vec<SocketAddr>,
    /// Names that HOST accepts. Empty: every name.
    pub host_names: Vec<String>,
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
    /// Time that a complete atomic upload waits before it is published.
    pub settle_time: Duration,
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

#[derive(Debug)]
pub struct LogSettings {
    /// A filter of env_logger.
    pub level: String,
    pub format: LogFormat,
    /// `None`: no transfer log.
    pub transfer_log: Option<PathBuf>,
}

impl Config {
    /// # Errors
    /// A value cannot be used, or two values contradict each other.
    pub fn new(values: &Values) -> Result<Self, SettingsError> {
        let standalone = values.required("standalone")?;
        let authentication = authentication(values, standalone)?;
        let network = network(values, &authentication)?;
        Ok(Self {
            node_name: node_name(values)?,
            boot_id: values.optional("boot_id")?,
            storage: Storage {
                root: values.required("root")?,
                create_root: standalone,
                create_homes: values.required("create_homes")?,
                modes: Modes { file: mode(values, "file_mode")?, directory: mode(values, "directory_mode")? },
                sync_uploads: values.required("sync_uploads")?,
                locks: values.required("storage_locks")?,
                settle_time: values.duration("settle_time")?,
                resolve_links: values.required("resolve_links")?,
                list_depth: values.required("list_depth")?,
                sorted_entries: values.required("max_sorted_entries")?,
                listing_memory: values.required("max_listing_memory")?,
                stat_entries: values.required("max_stat_entries")?,
                quota_rescan: values.duration("quota_rescan")?,
                partial_lifetime: values.duration_or_off("partial_lifetime")?,
            },
            redis: redis(values, standalone)?,
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
            },
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

fn network(values: &Values, authentication: &Authentication) -> Result<Network, SettingsError> {
    let demo = matches!(authentication, Authentication::Demo);
    let listen: Vec<IpAddr> = if demo && !values.is_given("listen") {
        vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
    } else {
        values.list("listen")?
    };
    if listen.is_empty() {
        return Err(values.missing("listen", "a node needs an address to listen on"));
    }
    if demo && !listen.iter().all(IpAddr::is_loopback) {
        return Err(values.invalid(
            "listen",
            "without `user` or `user_file` every password is accepted, so the node may listen on loopback \
             only",
        ));
    }
    let passive_ports = passive_ports(values)?;
    let slice = slice(values, passive_ports)?;
    let (port, implicit_tls_port) = (values.required("port")?, values.optional("implicit_tls_port")?);
    let is_passive = |port: u16| port != 0 && slice.from() <= port && port <= slice.to();
    for (key, port) in [("port", Some(port)), ("implicit_tls_port", implicit_tls_port)] {
        if port.is_some_and(is_passive) {
            let reason = format_args!(
                "it is one of this node's passive ports, {slice}: choose another port, or other passive \
                 ports (passive_port_min, passive_port_max)"
            );
            return Err(values.invalid(key, reason));
        }
    }
    if implicit_tls_port == Some(port) {
        return Err(values.invalid(
            "implicit_tls_port",
            "it is the same as `port`: explicit and implicit FTPS need a port each",
        ));
    }
    Ok(Network {
        listen_is_default: !values.is_given("listen"),
        listen,
        port,
        implicit_tls_port,
        passive_ports,
        slice,
        external_address: values.optional("external_address")?,
        internal_networks: values.list("internal_networks")?,
        trusted_balancers: trusted_balancers(values)?,
        active_mode: values.required("active_mode")?,
        services: services(values, authentication)?,
        host_names: values.list("host_names")?,
    })
}

fn passive_ports(values: &Values) -> Result<PortRange, SettingsError> {
    PortRange::new(values.required("passive_port_min")?, values.required("passive_port_max")?).map_err(
        |error| {
            // The error names the setting that the operator gave.
            let key =
                if values.is_given("passive_port_max") { "passive_port_max" } else { "passive_port_min" };
            values.invalid(key, error)
        },
    )
}

fn slice(values: &Values, range: PortRange) -> Result<PortRange, SettingsError> {
    let nodes: Vec<NodeName> = values.list("cluster_nodes")?;
    if nodes.is_empty() {
        return Ok(range);
    }
    if let Some(twice) = nodes.iter().enumerate().find(|(i, name)| nodes[..*i].contains(name)) {
        return Err(values.invalid("cluster_nodes", format_args!("{} is listed twice", twice.1)));
    }
    let own = node_name(values)?;
    let position = nodes.iter().position(|name| *name == own).ok_or_else(|| {
        values.invalid("cluster_nodes", format_args!("this node's name, {own}, is not in the list"))
    })?;
    range.slice(position, nodes.len()).ok_or_else(|| {
        values.invalid(
            "cluster_nodes",
            format_args!("{} nodes cannot share {} passive ports", nodes.len(), range.count()),
        )
    })
}

fn trusted_balancers(values: &Values) -> Result<Vec<IpNet>, SettingsError> {
    let trusted: Vec<IpNet> = values.list("trusted_balancers")?;
    let behind_proxy: bool = values.required("behind_proxy")?;
    if !behind_proxy && values.is_given("behind_proxy") && !trusted.is_empty() {
        return Err(values.invalid("behind_proxy", "it is false, but trusted_balancers is set"));
    }
    if behind_proxy && trusted.is_empty() {
        // The reference system trusts any balancer in a private network.
        const PRIVATE: [&str; 6] =
            ["127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7"];
        // Each literal above parses.
        return Ok(PRIVATE.iter().filter_map(|network| network.parse().ok()).collect());
    }
    Ok(trusted)
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

/// Addresses of the cluster's services, which active mode must not reach. Host names are not resolved: their
/// addresses may change, and most clusters' settings have IP addresses.
fn services(values: &Values, authentication: &Authentication) -> Result<Vec<SocketAddr>, SettingsError> {
    let mut services: Vec<SocketAddr> = values.optional("admin_listen")?.into_iter().collect();
    services.extend(values.optional::<RedisUrl>("redis_url")?.and_then(|url| url.address()));
    if let Authentication::Authd { urls, .. } = authentication {
        services.extend(urls.iter().filter_map(AuthdUrl::address));
    }
    Ok(services)
}

fn redis(values: &Values, standalone: bool) -> Result<Option<RedisOptions>, SettingsError> {
    let Some(mut url) = values.optional::<RedisUrl>("redis_url")? else {
        return if standalone {
            Ok(None)
        } else {
            Err(values.missing("redis_url", "the registry of a cluster is in Redis"))
        };
    };
    if let Some(password) = values.secret("redis_password_file")? {
        url = url.with_password(&password);
    }
    Ok(Some(RedisOptions {
        prefix: values.required("redis_prefix")?,
        timeout: values.duration("redis_timeout")?,
        lease: values.duration("node_lease")?,
        when_away: values.required("registry_away")?,
        data_connect_timeout: values.duration("data_connect_timeout")?,
        ..RedisOptions::new(url)
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
