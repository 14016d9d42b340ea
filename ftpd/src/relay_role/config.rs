//! `RoleConfig`: the settings of `ftp-relay`, parsed and checked. No other code of the relay reads settings.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    thread,
    time::Duration,
};

use common::{
    node::PortRange,
    process::{http::ConnectionLimits, logging::LogFormat},
    registry::{RedisOptions, RedisServers},
    settings::{SettingsError, Values},
};
use ipnet::IpNet;

use super::nft::NftMap;

/// All settings, checked.
#[derive(Debug)]
pub struct RoleConfig {
    pub listen: Vec<IpAddr>,
    /// True if `listen` is the default. Only then an address family that the host lacks is left out.
    pub listen_is_default: bool,
    /// The passive port range of the cluster.
    pub passive_ports: PortRange,
    /// `None`: the relay carries no control connections with explicit FTPS or without TLS.
    pub control_port: Option<u16>,
    /// `None`: the relay carries no control connections with implicit FTPS.
    pub implicit_tls_port: Option<u16>,
    /// Networks of balancers in front of the relay, which must send a PROXY header.
    pub trusted_balancers: Vec<IpNet>,
    /// `None`: the kernel chooses it.
    pub source_address: Option<IpAddr>,
    pub nft_map: Option<NftMap>,
    pub redis: RedisOptions,
    pub map_refresh: Duration,
    pub relay_key_rotation: Duration,
    pub limits: RoleLimits,
    pub timeouts: RoleTimeouts,
    /// `None`: metrics and health are not served.
    pub admin_listen: Option<SocketAddr>,
    pub admin_limits: ConnectionLimits,
    /// A filter of env_logger.
    pub log_level: String,
    pub log_format: LogFormat,
}

/// Limits of the relay.
#[derive(Clone, Debug)]
pub struct RoleLimits {
    /// Relayed data connections at once.
    pub relayed: u32,
    /// Control connections at once.
    pub control_connections: u32,
    /// Threads of the runtime.
    pub serving_threads: usize,
    /// Log lines a minute of one kind from one network. 0: no limit.
    pub failure_lines: u32,
}

/// Time limits of the relay.
#[derive(Clone, Debug)]
pub struct RoleTimeouts {
    /// Time in which a node must accept a connection.
    pub connect: Duration,
    /// Time in which a node must send the first byte of its greeting.
    pub greeting: Duration,
    /// Time without a byte after which a data connection ends.
    pub stall: Duration,
    /// Time without a byte after which a control connection ends.
    pub control: Duration,
    /// Time in which a balancer must send the PROXY header.
    pub proxy_header: Duration,
    /// Time that relayed connections may go on after SIGTERM.
    pub drain: Duration,
}

impl RoleConfig {
    /// # Errors
    /// A value cannot be used, or two values contradict each other.
    pub fn new(values: &Values) -> Result<Self, SettingsError> {
        let listen: Vec<IpAddr> = values.list("listen")?;
        if listen.is_empty() {
            return Err(values.missing("listen", "a relay needs an address to listen on"));
        }
        let passive_ports = passive_ports(values)?;
        let (control_port, implicit_tls_port) = control_ports(values, passive_ports)?;
        Ok(Self {
            listen,
            listen_is_default: !values.is_given("listen"),
            passive_ports,
            control_port,
            implicit_tls_port,
            trusted_balancers: values.list("trusted_balancers")?,
            source_address: values.optional("source_address")?,
            nft_map: values.optional("nft_map")?,
            redis: redis(values)?,
            map_refresh: values.duration("map_refresh")?,
            relay_key_rotation: values.duration("relay_key_rotation")?,
            limits: RoleLimits {
                relayed: count(values, "max_relayed")?,
                control_connections: count(values, "max_control_connections")?,
                serving_threads: match values.optional::<NonZeroU32>("serving_threads")? {
                    Some(threads) => threads.get() as usize,
                    // If the number of processors is unknown, one thread serves.
                    None => thread::available_parallelism().map_or(1, usize::from),
                },
                failure_lines: values.required("failure_log_limit")?,
            },
            timeouts: RoleTimeouts {
                connect: values.duration("relay_connect_timeout")?,
                greeting: values.duration("greeting_timeout")?,
                stall: values.duration("stall_timeout")?,
                control: values.duration("control_timeout")?,
                proxy_header: values.duration("proxy_header_timeout")?,
                drain: values.duration("drain_timeout")?,
            },
            admin_listen: values.optional("admin_listen")?,
            admin_limits: ConnectionLimits {
                connections: count(values, "admin_max_connections")? as usize,
                header_timeout: values.duration("admin_header_timeout")?,
            },
            log_level: values.log_level()?,
            log_format: values.required("log_format")?,
        })
    }
}

/// A number of at least 1.
fn count(values: &Values, key: &str) -> Result<u32, SettingsError> {
    values.required::<NonZeroU32>(key).map(NonZeroU32::get)
}

fn passive_ports(values: &Values) -> Result<PortRange, SettingsError> {
    let (min, max) = (values.required("passive_port_min")?, values.required("passive_port_max")?);
    // The error names the setting that the operator gave.
    let key = if values.is_given("passive_port_max") { "passive_port_max" } else { "passive_port_min" };
    PortRange::new(min, max).map_err(|error| values.invalid(key, error))
}

/// `control_port` and `implicit_tls_port`.
fn control_ports(values: &Values, passive: PortRange) -> Result<(Option<u16>, Option<u16>), SettingsError> {
    let (control, implicit) = (values.optional("control_port")?, values.optional("implicit_tls_port")?);
    for (key, port) in [("control_port", control), ("implicit_tls_port", implicit)] {
        match port {
            Some(0) => return Err(values.invalid(key, "it cannot be zero")),
            Some(port) if passive.contains(port) => {
                let reason = format_args!(
                    "it is one of the passive ports, {passive}: choose another port, or other passive ports \
                     (passive_port_min, passive_port_max)"
                );
                return Err(values.invalid(key, reason));
            }
            _ => {}
        }
    }
    if control.is_some() && control == implicit {
        return Err(values.invalid("implicit_tls_port", "it is also the control_port"));
    }
    Ok((control, implicit))
}

fn redis(values: &Values) -> Result<RedisOptions, SettingsError> {
    let servers = RedisServers::read(values)?.ok_or_else(|| {
        let reason = "the relay reads there which node owns which passive ports (or redis_sentinels)";
        values.missing("redis_url", reason)
    })?;
    Ok(RedisOptions {
        prefix: values.required("redis_prefix")?,
        timeout: values.duration("redis_timeout")?,
        ..RedisOptions::new(servers)
    })
}
