//! Records of sessions in the registry, and limits of their number.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ids::NodeName;
pub use crate::ids::{InvalidSessionId, SessionId};

/// The registry's record of a session after its login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    pub id: SessionId,
    pub node: NodeName,
    pub user: String,
    /// The client's address, taken from the PROXY header if there is one.
    pub address: IpAddr,
    /// Time of the login, in seconds since the Unix epoch.
    pub since: u64,
}

/// Numbers of existing sessions at which a login is refused. `None` means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionLimits {
    /// Sessions of the user on all nodes.
    pub per_user: Option<u32>,
    /// Sessions from the client's network (an IPv4 address or an IPv6 /64) on all nodes, of all users.
    pub per_address: Option<u32>,
    /// Sessions of the user from the client's network on all nodes.
    pub per_user_and_address: Option<u32>,
}
