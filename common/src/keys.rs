//! The names of all Redis keys, and the form of their values.
//!
//! All keys of a cluster start with the same prefix, so that clusters can share a Redis. Names that people
//! choose (users, paths) come last in a key, so that a separator within them is harmless.

use std::net::IpAddr;

use crate::ids::{NodeName, SessionId};

/// Builds the keys of one cluster.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    /// Every key starts with `prefix` and a colon.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    fn key(&self, rest: impl std::fmt::Display) -> String {
        format!("{}:{rest}", self.prefix)
    }

    /// Set: names of the live nodes, possibly with some that have just expired. Expires with the last of
    /// them.
    pub fn nodes(&self) -> String {
        self.key("nodes")
    }

    /// Hash: a live node. `record` is its `NodeRecord` as JSON. Scripts compare `incarnation`, `place` (where
    /// the process runs), `from` and `to` (the slice; port 1 if the node leases blocks), `block_ports` (ports
    /// of a block; 0: the node has a slice), `range_from` and `range_to` (the range whose blocks it leases)
    /// and `draining`. `lease` is the node's lease in ms. Expires unless the node renews it; until then the
    /// process holds the name. The key ends with the name.
    pub fn node(&self, name: &NodeName) -> String {
        self.key(format_args!("node:{name}"))
    }

    /// First part of the keys of all nodes.
    pub fn node_prefix(&self) -> String {
        self.key("node:")
    }

    /// Hash: the leases of blocks of passive ports, from `FROM-TO` to the owner. `block_step.lua` describes
    /// the form. Expires long after the last refresh of a node that leases blocks.
    pub fn blocks(&self) -> String {
        self.key("blocks")
    }

    /// Hash: the sessions of a node, from session id to `SessionRecord` as JSON. They count as long as the
    /// node's own key exists. This key expires long after that one, so that it still exists when the node
    /// comes back.
    pub fn node_sessions(&self, name: &NodeName) -> String {
        self.key(format_args!("sessions:{name}"))
    }

    /// List: commands for a node, as JSON of `NodeCommand`. It makes the node react at once. Commands that
    /// must not be lost are also in [`node_orders`](Self::node_orders). Expires.
    pub fn node_commands(&self, name: &NodeName) -> String {
        self.key(format_args!("commands:{name}"))
    }

    /// Hash: the orders to one process of a node. `incarnation` names the process. `drain` and `end:ID`
    /// hold the times (Unix s) of the orders; `why:ID` is the reason of `end:ID`, if it has one. The node
    /// removes `end:ID` and `why:ID` when the session has ended. `drained` is the time at which the node left
    /// after an order to drain. Expires a day after the last change.
    pub fn node_orders(&self, name: &NodeName) -> String {
        self.key(format_args!("orders:{name}"))
    }

    /// Hash: the details of a node's sessions, from session id to `SessionDetails` as JSON. `published` is
    /// the time (Unix ms). The node writes it once a second while an administrator watches. Expires after
    /// 5 s.
    pub fn live(&self, name: &NodeName) -> String {
        self.key(format_args!("live:{name}"))
    }

    /// The next content of [`live`](Self::live), while the node writes it.
    pub fn next_live(&self, name: &NodeName) -> String {
        self.key(format_args!("next-live:{name}"))
    }

    /// String: the last part of a session's dialogue, an array of `DialogueLine` as JSON. The node writes it
    /// on an administrator's request. Expires after 30 s.
    pub fn dialogue(&self, session: SessionId) -> String {
        self.key(format_args!("dialogue:{session}"))
    }

    /// String: the state of the events, `EventsView` as JSON. The node that delivers them writes it. Expires
    /// after 30 s.
    pub fn events_state(&self) -> String {
        self.key("events-state")
    }

    /// Stream: the newest events, if `events_file` has a stream. An entry has the fields `id` and `event`,
    /// which is the event as JSON. Never expires; each new entry removes the oldest beyond `entries`.
    pub fn events(&self) -> String {
        self.key("events")
    }

    /// String: the revision of the accounts, a number that rises with each change that may end a session.
    /// It starts at the time (Unix ms), so that a Redis that lost it does not repeat a number. Never
    /// expires.
    pub fn revision(&self) -> String {
        self.key("revision")
    }

    /// Sorted set: the sessions of a user by their expiry time (Unix ms). A member is `ID NAME
    /// INCARNATION`, and counts only while the key of node NAME has this INCARNATION.
    ///
    /// (An earlier version used `sessions-of-user:` and similar keys with bare ids. Do not use these names
    /// again.)
    pub fn user_sessions(&self, user: &str) -> String {
        self.key(format_args!("user-sessions:{user}"))
    }

    /// Sorted set: the sessions of a client's network (see
    /// [`network_of`](crate::client_network::network_of)), in the
    /// form of [`user_sessions`](Self::user_sessions).
    pub fn address_sessions(&self, network: IpAddr) -> String {
        self.key(format_args!("address-sessions:{network}"))
    }

    /// Sorted set: a user's sessions from one network, in the form of
    /// [`user_sessions`](Self::user_sessions).
    pub fn user_address_sessions(&self, user: &str, network: IpAddr) -> String {
        self.key(format_args!("user-address-sessions:{network}:{user}"))
    }

    /// String: the write lease of `path`, a file or directory within the storage, with its holder.
    /// `lease.lua` describes the form. The holder's node renews it. The key expires long after the lease,
    /// so that a node that was cut off learns whether another session took the path meanwhile.
    pub fn write_lease(&self, path: &[u8]) -> Vec<u8> {
        [self.write_leases().as_bytes(), path].concat()
    }

    /// First part of the keys of all write leases.
    pub fn write_leases(&self) -> String {
        self.key("write:")
    }

    /// Sorted set: the leased paths by name (all scores are 0), possibly with some of expired leases.
    /// Expires with the last lease.
    pub fn leased_paths(&self) -> String {
        self.key("leased-paths")
    }

    /// Sorted set: the paths in [`leased_paths`](Self::leased_paths) that are leased as trees.
    pub fn leased_trees(&self) -> String {
        self.key("leased-trees")
    }

    /// Hash: the epoch, which is the time since Redis last lost data. `epoch` is its random name, `created`
    /// its start (Unix ms), `server` the server process. `doubt` is 1 if nodes may hold leases from
    /// before. `number` is the number of the last lease. Expires long after the last refresh of a node.
    pub fn lease_epoch(&self) -> String {
        self.key("lease-epoch")
    }

    /// Hash: the usage of the home with this path within the storage. `bytes` and `files` are the result of
    /// the last count (at `counted`, Unix ms) with all changes since. `scan`, `scan_until` and `changes`
    /// exist during a count. `node:NAME INCARNATION` holds the sums and reservations of a node. Expires
    /// without use: see `usage.rs`.
    ///
    /// (An earlier version, which did not count directories, used `usage:`. Do not use this name again.)
    pub fn home_usage(&self, home: &[u8]) -> Vec<u8> {
        [self.key("home-usage:").as_bytes(), home].concat()
    }

    /// Hash: the bandwidth of a user in one direction. `free` is the time (Unix µs) at which all bytes
    /// taken so far have moved. `node:NAME` is the number of the user's transfers on a node. Expires.
    pub fn bandwidth(&self, direction: &str, user: &str) -> String {
        self.key(format_args!("bandwidth:{direction}:{user}"))
    }

    /// List: the keys that encrypt TLS session tickets, newest first. Expires.
    pub fn ticket_keys(&self) -> String {
        self.key("ticket-keys")
    }

    /// List: the keys that authenticate relayed connections, newest first. Expires.
    pub fn relay_keys(&self) -> String {
        self.key("relay-keys")
    }

    /// Stream: the newest records of the audit trail. The field `record` of an entry is an `AuditRecord` as
    /// JSON. Never expires; each new entry removes the oldest beyond `audit_records`.
    pub fn audit(&self) -> String {
        self.key("audit")
    }

    /// String: written to see whether Redis accepts writes. Expires at once.
    pub fn write_probe(&self) -> String {
        self.key("write-probe")
    }

    /// Set: the ids of authds that run or ran.
    pub fn authds(&self) -> String {
        self.key("authds")
    }

    /// String: a running authd as JSON. Expires soon after its process has ended.
    pub fn authd(&self, id: &str) -> String {
        self.key(format_args!("authd:{id}"))
    }

    /// A part of the backup that is being restored: hashes in the form of those that they replace, and the
    /// string `state`. `id` is the random name of the restore. Expires.
    pub fn restore(&self, id: u64, part: &str) -> String {
        self.key(format_args!("restore:{id:016x}:{part}"))
    }

    /// Hash: the users that were created through authd's API, from name to JSON. Never expires.
    pub fn users(&self) -> String {
        self.key("users")
    }

    /// Hash: the groups that were created through authd's API, from name to JSON. Never expires.
    pub fn groups(&self) -> String {
        self.key("groups")
    }

    /// Hash: the logins that administrators forbid, from `user:NAME` or `address:NETWORK` to JSON. authd
    /// removes those whose time is over.
    pub fn login_blocks(&self) -> String {
        self.key("login-blocks")
    }

    /// Hash: the overrides of declared users, from name to JSON. Never expires.
    pub fn overrides(&self) -> String {
        self.key("overrides")
    }

    /// String: the number of changes to users and groups. A changed number tells authd's caches that they
    /// are outdated.
    pub fn users_generation(&self) -> String {
        self.key("users-generation")
    }

    /// Hash: the failed logins of a user name. `failures` is their number, `until` the end of the ban (Unix
    /// ms). Expires.
    pub fn failures_of_user(&self, user: &str) -> String {
        self.key(format_args!("failures-of-user:{user}"))
    }

    /// Hash: the failed logins from an address, as [`failures_of_user`](Self::failures_of_user).
    pub fn failures_of_address(&self, address: IpAddr) -> String {
        self.key(format_args!("failures-of-address:{address}"))
    }

    /// Sorted set: the addresses from which a user has recently logged in, by time (Unix ms). Expires.
    pub fn known_addresses(&self, user: &str) -> String {
        self.key(format_args!("known-addresses:{user}"))
    }

    /// Sorted set: the bans, by the time (Unix ms) at which they end. A member is `address:` or `user:` and
    /// the banned address or user name. Expires with the last ban.
    pub fn bans(&self) -> String {
        self.key("bans")
    }
}
