//! Every Redis key and its shape, built here only.
//!
//! All keys of one cluster start with the same prefix, so that clusters can share a Redis. Names
//! chosen by people (users, paths) come last in a key, where no separator can be confused.

use std::net::IpAddr;

use crate::ids::NodeName;

/// Builds the keys of one cluster.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    /// `prefix` is put before every key, with a `:`; the default cluster's is `ftp`.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    fn key(&self, rest: impl std::fmt::Display) -> String {
        format!("{}:{rest}", self.prefix)
    }

    /// Set of the names of nodes that were live of late. Expires with the last of them.
    pub fn nodes(&self) -> String {
        self.key("nodes")
    }

    /// Hash: a live node. `record` is its `NodeRecord` as JSON; `incarnation`, `place` (where its
    /// process runs), `from` and `to` (its slice) are what scripts compare. Expires unless the node
    /// refreshes it: until then the name is that process's. The key ends with the name.
    pub fn node(&self, name: &NodeName) -> String {
        self.key(format_args!("node:{name}"))
    }

    /// Hash of session id to `SessionRecord` as JSON: a node's sessions. They live as long as the
    /// node's own key does; this one expires long after it, and so is there when the node comes back.
    pub fn node_sessions(&self, name: &NodeName) -> String {
        self.key(format_args!("sessions:{name}"))
    }

    /// List of `NodeCommand` as JSON that wait for a node. Expires. It makes the node react at once; a command
    /// that is lost on its way stands in [`node_orders`](Self::node_orders) too.
    pub fn node_commands(&self, name: &NodeName) -> String {
        self.key(format_args!("commands:{name}"))
    }

    /// Hash: what one process of a node is to do. `incarnation` names the process; `drain` and `end:ID` are the
    /// times (Unix s) at which that was asked for. The node removes `end:ID` when the session has ended; when a
    /// node that was told to drain leaves, `drained` is the time. Expires a day after the last change.
    pub fn node_orders(&self, name: &NodeName) -> String {
        self.key(format_args!("orders:{name}"))
    }

    /// The revision of the accounts: a number that changes with each change after which a session may have to
    /// end. Starts at a time (Unix ms), so that a Redis that lost it does not repeat a number. Never expires.
    pub fn revision(&self) -> String {
        self.key("revision")
    }

    /// Sorted set: a user's sessions by the time (Unix ms) at which nobody has renewed them for long.
    /// Each is `ID NAME INCARNATION`, and counts only while that process of that node lives: while its
    /// node's key has that incarnation.
    ///
    /// (`sessions-of-user:` and so on were an earlier version's, with bare ids: not to be used again.)
    pub fn user_sessions(&self, user: &str) -> String {
        self.key(format_args!("user-sessions:{user}"))
    }

    /// Sorted set: the sessions of a client's network (see [`network_of`](crate::client_network::network_of)), as
    /// [`user_sessions`](Self::user_sessions).
    pub fn address_sessions(&self, network: IpAddr) -> String {
        self.key(format_args!("address-sessions:{network}"))
    }

    /// Sorted set: a user's sessions from one network, as [`user_sessions`](Self::user_sessions).
    pub fn user_address_sessions(&self, user: &str, network: IpAddr) -> String {
        self.key(format_args!("user-address-sessions:{network}:{user}"))
    }

    /// String: the lease on writing `path`, which names a file or a directory within the storage, and its
    /// holder; `lease.lua` tells the form. Its node renews it. It expires long after the lease does, so that a
    /// node that was cut off learns whether another session took the path meanwhile.
    pub fn write_lease(&self, path: &[u8]) -> Vec<u8> {
        [self.write_leases().as_bytes(), path].concat()
    }

    /// What the keys of all leases start with.
    pub fn write_leases(&self) -> String {
        self.key("write:")
    }

    /// Sorted set: the leased paths, by name (all scores are 0), and some of leases that have ended. Expires
    /// with the last of them.
    pub fn leased_paths(&self) -> String {
        self.key("leased-paths")
    }

    /// Sorted set: those of [`leased_paths`](Self::leased_paths) that are leased with all paths below them.
    pub fn leased_trees(&self) -> String {
        self.key("leased-trees")
    }

    /// Hash: `epoch` is a random name for the time since Redis lost data, which began at `created` (Unix ms) on
    /// the server process `server`; `doubt` is 1 if nodes held leases before, and `number` the number of the
    /// last lease. Expires long after the last node's refresh.
    pub fn lease_epoch(&self) -> String {
        self.key("lease-epoch")
    }

    /// Hash: how much a home holds, which is named by its path within the storage. `bytes` and
    /// `files` as of the last count and what nodes have told since, `counted` (Unix ms of that
    /// count); `scan`, `scan_until` and `changes` while it is counted; `node:NAME INCARNATION` is what
    /// a node has told so far, and has reserved. Expires when it has not been used for long.
    ///
    /// (`usage:` was an earlier version's, which counted no directories: not to be used again.)
    pub fn home_usage(&self, home: &[u8]) -> Vec<u8> {
        [self.key("home-usage:").as_bytes(), home].concat()
    }

    /// Hash: when a user's transfers in one direction may go on (`free`, Unix us), and how many each
    /// node has (`node:NAME`). Expires.
    pub fn bandwidth(&self, direction: &str, user: &str) -> String {
        self.key(format_args!("bandwidth:{direction}:{user}"))
    }

    /// List of the keys that seal TLS session tickets, the newest first. Expires.
    pub fn ticket_keys(&self) -> String {
        self.key("ticket-keys")
    }

    /// Hash of user name to the user's JSON: users made through authd's API. Never expires.
    pub fn users(&self) -> String {
        self.key("users")
    }

    /// Hash of group name to the group's JSON: groups made through authd's API. Never expires.
    pub fn groups(&self) -> String {
        self.key("groups")
    }

    /// Hash of the name of a declared user to what overrides it, as JSON. Never expires.
    pub fn overrides(&self) -> String {
        self.key("overrides")
    }

    /// Counter of changes to users and groups, which tells authd's caches that they are out of date.
    pub fn users_generation(&self) -> String {
        self.key("users-generation")
    }

    /// Failed logins of a user name. Expires.
    pub fn failures_of_user(&self, user: &str) -> String {
        self.key(format_args!("failures-of-user:{user}"))
    }

    /// Failed logins from an address. Expires.
    pub fn failures_of_address(&self, address: IpAddr) -> String {
        self.key(format_args!("failures-of-address:{address}"))
    }

    /// Sorted set: the addresses from which a user logged in of late, by the time (Unix ms). Expires.
    pub fn known_addresses(&self, user: &str) -> String {
        self.key(format_args!("known-addresses:{user}"))
    }

    /// Sorted set: `address:` or `user:` and whose failed logins make others wait, by the time (Unix
    /// ms) at which that ends. Expires with the last of them.
    pub fn bans(&self) -> String {
        self.key("bans")
    }
}
