//! Every Redis key and its shape, built here only.
//!
//! All keys of one cluster start with the same prefix, so that clusters can share a Redis. Names
//! chosen by people (users, paths) come last in a key, where no separator can be confused.

use std::net::IpAddr;

use crate::node::NodeName;

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

    /// List of `NodeCommand` as JSON that wait for a node. Expires.
    pub fn node_commands(&self, name: &NodeName) -> String {
        self.key(format_args!("commands:{name}"))
    }

    /// Sorted set: a user's sessions by the time (Unix ms) at which nobody has renewed them for long.
    /// Each is `ID NAME INCARNATION`, and counts only while that process of that node lives: while its
    /// node's key has that incarnation.
    ///
    /// (`sessions-of-user:` and so on were an earlier version's, with bare ids: not to be used again.)
    pub fn user_sessions(&self, user: &str) -> String {
        self.key(format_args!("user-sessions:{user}"))
    }

    /// Sorted set: an address's sessions, as [`user_sessions`](Self::user_sessions).
    pub fn address_sessions(&self, address: IpAddr) -> String {
        self.key(format_args!("address-sessions:{address}"))
    }

    /// Sorted set: a user's sessions from one address, as [`user_sessions`](Self::user_sessions).
    pub fn user_address_sessions(&self, user: &str, address: IpAddr) -> String {
        self.key(format_args!("user-address-sessions:{address}:{user}"))
    }

    /// String: the fencing token of the lease on writing `path`, which names a file within the
    /// storage. Expires unless its node refreshes it.
    ///
    /// The token says which node, process and lease it is, and no two are the same. It need not
    /// count upwards: storage cannot compare tokens, so a writer asks whether its own still stands.
    pub fn write_lease(&self, path: &[u8]) -> Vec<u8> {
        [self.key("write:").as_bytes(), path].concat()
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
