//! A running `ftp-relay` process.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    sync::Arc,
};

use crate::{
    binaries, eventually, http,
    loopback::Loopback,
    network::Host,
    node::{clean_command, metric},
    process::Daemon,
};

/// Settings of a relay that is about to start.
#[derive(Clone)]
pub struct RelayBuilder {
    /// Keeps the addresses reserved.
    _loopback: Option<Arc<Loopback>>,
    listen: IpAddr,
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
}

/// A running `ftp-relay`. Dropping it ends the process.
pub struct Relay {
    pub daemon: Daemon,
    /// The address on which it listens.
    pub listen: IpAddr,
    /// Address of /metrics, /healthz and /readyz.
    pub admin: SocketAddr,
    builder: RelayBuilder,
}

impl Relay {
    /// A relay that listens on `loopback.address(host)`, reads the registry in `redis`, and connects to nodes
    /// from its own address.
    pub fn builder(loopback: &Arc<Loopback>, host: u8, redis: SocketAddr) -> RelayBuilder {
        let builder = RelayBuilder::new(loopback.address(host), redis);
        RelayBuilder { _loopback: Some(Arc::clone(loopback)), ..builder }
    }

    /// The value of a metric, named as in Prometheus's text format: `name` or `name{label="value"}`. `None`:
    /// the metric does not exist yet.
    ///
    /// # Panics
    /// The admin address does not respond.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let answer = http::get(self.admin, "/metrics").expect("the admin address answers");
        metric(&answer.body, name)
    }

    /// Waits until `wanted` accepts the value of a metric. A missing metric counts as 0.
    ///
    /// # Panics
    /// `wanted` accepts no value in time.
    pub fn wait_for_metric(&self, name: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        eventually(&format!("metric {name}"), || {
            let value = self.metric(name).unwrap_or(0.0);
            wanted(value).then_some(value)
        })
    }

    /// The builder of this relay, to start another one like it.
    pub fn again(&self) -> RelayBuilder {
        self.builder.clone()
    }
}

impl RelayBuilder {
    /// A relay on this address.
    pub fn new(listen: IpAddr, redis: SocketAddr) -> Self {
        let builder = Self { _loopback: None, listen, settings: Vec::new(), environment: Vec::new() };
        builder
            .setting("listen", listen)
            .setting("redis_url", redis)
            .setting("source_address", listen)
            .setting("admin_listen", SocketAddr::from((listen, 9122)))
            .setting("log_level", "info,ftpd=debug,common=debug")
    }

    /// Sets a setting by its key. The last value counts.
    pub fn setting(mut self, key: &str, value: impl ToString) -> Self {
        self.settings.retain(|(known, _)| known != key);
        self.settings.push((key.to_owned(), value.to_string()));
        self
    }

    /// Removes a setting.
    pub fn without(mut self, key: &str) -> Self {
        self.settings.retain(|(known, _)| known != key);
        self
    }

    /// Sets an environment variable.
    pub fn variable(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    /// Sets the passive range.
    pub fn passive_ports(self, from: u16, to: u16) -> Self {
        self.setting("passive_port_min", from).setting("passive_port_max", to)
    }

    /// The command that starts the relay.
    pub fn command(&self) -> Command {
        let mut command = clean_command(binaries::daemon("ftp-relay"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        for (key, value) in &self.settings {
            command.arg(format!("--{}={value}", key.replace('_', "-")));
        }
        command
    }

    /// Starts the relay and waits until it listens.
    ///
    /// # Panics
    /// The relay does not listen in time.
    pub fn start(self) -> Relay {
        let relay = self.spawn();
        relay.daemon.wait_for_message("ready", &[]);
        relay
    }

    /// Starts the relay without waiting.
    ///
    /// # Panics
    /// The process cannot be started.
    pub fn spawn(self) -> Relay {
        self.spawn_by(|_| {})
    }

    /// Starts the relay on a host with a separate network, without waiting.
    ///
    /// # Panics
    /// The process cannot be started.
    pub fn spawn_on(self, host: &Host) -> Relay {
        self.spawn_by(|command| host.place(command))
    }

    fn spawn_by(self, prepare: impl FnOnce(&mut Command)) -> Relay {
        let admin = self.settings.iter().find(|(key, _)| key == "admin_listen");
        let admin = admin.and_then(|(_, value)| value.parse().ok()).expect("the admin address is set");
        let mut command = self.command();
        prepare(&mut command);
        Relay { daemon: Daemon::start("ftp-relay", command), listen: self.listen, admin, builder: self }
    }
}
