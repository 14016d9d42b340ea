//! The cluster on which all schedules run, and its faults.

use std::{thread, time::Duration};

use cluster_tests::{cluster::Cluster, eventually, wire::Heal};
use nix::sys::signal::Signal;

use crate::{
    generator::{NODES, Round, SCHEDULES_PER_ROUND},
    model::{Account, Fault},
    runner::Lane,
};

/// Hash of the password `secret` with cheap parameters.
const HASH: &str =
    "$argon2id$v=19$m=1024,t=1,p=1$8aCWlqnXu46nnFDSh+gFrQ$GgnIelifQhLr9gjFoOv3mDF7mfYHfmT+yUAxgr76a8U";
/// Redis command that deletes all keys of write leases.
const FORGET: &str =
    r#"EVAL "for _, k in ipairs(redis.call('KEYS', '*write*')) do redis.call('DEL', k) end return 1" 0"#;

pub(crate) struct Shared {
    cluster: Cluster,
    lease: Duration,
}

impl Shared {
    /// Starts three nodes without a balancer. Each node reaches Redis through its own wire, which can be
    /// cut. Each schedule of a round has one home and two users. `seconds` is the node lease, and
    /// `settings` are further settings of the nodes.
    pub(crate) fn start(seconds: u64, settings: &[(&str, &str)]) -> Self {
        let mut users = String::new();
        for number in 0..SCHEDULES_PER_ROUND {
            for (account, uploads) in [(Account::Direct, "direct"), (Account::Atomic, "atomic")] {
                let (user, home) = (Lane::user(number, account), Lane::home(number));
                users += &format!("[users.{user}]\npassword_hash = \"{HASH}\"\n");
                users += &format!("home = \"/{home}\"\nuploads = \"{uploads}\"\n");
            }
        }
        let builder = Cluster::builder()
            .nodes(NODES)
            .passive_ports(600)
            .without_balancer()
            .wires()
            .users(&users)
            .setting("node_lease", format!("{seconds}s"))
            .setting("redis_timeout", "300ms")
            .setting("log_level", "info");
        let cluster =
            settings.iter().fold(builder, |builder, (key, value)| builder.setting(key, value)).start();
        Self { cluster, lease: Duration::from_secs(seconds) }
    }

    pub(crate) fn lane(&self, number: usize) -> Lane {
        Lane {
            number,
            connector: self.cluster.client(number as u8),
            nodes: (0..NODES).map(|node| self.cluster.node(node).address).collect(),
            storage: self.cluster.storage().to_owned(),
            sessions: Default::default(),
        }
    }

    /// Begins the fault of a round.
    pub(crate) fn begin(&mut self, round: &Round) {
        let lost = match round.fault {
            Fault::None => return,
            Fault::Pause(node) => {
                self.cluster.node(node).daemon.signal(Signal::SIGSTOP);
                Some(node)
            }
            Fault::Partition(node) => {
                self.cluster.wire(node).cut();
                Some(node)
            }
            Fault::Flush => {
                self.cluster.redis().command("FLUSHALL");
                None
            }
            Fault::Forget => {
                self.cluster.redis().command(FORGET);
                None
            }
            Fault::Away => {
                self.cluster.kill_redis();
                None
            }
            Fault::Hang => {
                self.cluster.redis().daemon.signal(Signal::SIGSTOP);
                if !round.is_early {
                    // All leases have expired when Redis continues.
                    thread::sleep(2 * self.lease);
                }
                None
            }
        };
        if let Some(node) = lost
            && !round.is_early
        {
            let name = self.cluster.node(node).name.clone();
            eventually("the registry to forget the node", || (!self.nodes().contains(&name)).then_some(()));
        }
    }

    /// Ends the fault of a round.
    pub(crate) fn end(&mut self, round: &Round) {
        match round.fault {
            Fault::None | Fault::Flush | Fault::Forget => {}
            Fault::Pause(node) => self.cluster.node(node).daemon.signal(Signal::SIGCONT),
            Fault::Partition(node) => {
                self.cluster.wire(node).heal(if round.delivers_late { Heal::Deliver } else { Heal::Close });
            }
            Fault::Away => self.cluster.start_redis(),
            Fault::Hang => self.cluster.redis().daemon.signal(Signal::SIGCONT),
        }
        if round.recovers_first {
            self.wait_until_whole();
        }
    }

    /// Waits until no transfer runs and the registry knows all nodes.
    pub(crate) fn wait_until_quiet(&self) {
        for node in 0..NODES {
            self.cluster.node(node).wait_for_metric("ftp_transfers", |transfers| transfers == 0.0);
        }
        self.wait_until_whole();
    }

    fn wait_until_whole(&self) {
        eventually("the registry to know all nodes", || (self.nodes().len() == NODES).then_some(()));
    }

    /// Names of the nodes that the registry considers alive.
    fn nodes(&self) -> Vec<String> {
        let answer = self.cluster.authd().administer("GET", "/v1/nodes", None);
        let Ok(json) = serde_json::from_str::<serde_json::Value>(&answer.body) else { return vec![] };
        let nodes = json.as_array().into_iter().flatten();
        nodes.filter_map(|node| node["name"].as_str().map(str::to_owned)).collect()
    }
}
