//! The identity of a session: the fields that every log line about the session shows.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
};

use common::session::SessionId;

/// A session's number, user and client address.
#[derive(Debug)]
pub struct SessionIdentity {
    pub session: SessionId,
    /// The login name.
    pub user: String,
    /// The client address.
    pub address: IpAddr,
    /// The log has a data connection that came to this session's port from another address.
    foreign_data_logged: AtomicBool,
}

/// Logs a message with the fields `session`, `user` and `address` of a [`SessionIdentity`]:
/// `log_session!(Level::Warn, identity, verb, path = "/a"; "the text")`.
macro_rules! log_session {
    ($level:expr, $identity:expr $(, $key:tt $(:$capture:tt)? $(= $value:expr)?)*; $($message:tt)+) => {{
        let identity: &$crate::identity::SessionIdentity = &$identity;
        log::log!(
            $level,
            session:% = identity.session, user = identity.user.as_str(), address:% = identity.address
            $(, $key $(:$capture)? $(= $value)?)*;
            $($message)+
        )
    }};
}
pub(crate) use log_session;

impl SessionIdentity {
    pub fn new(session: SessionId, user: String, address: IpAddr) -> Self {
        Self { session, user, address, foreign_data_logged: AtomicBool::new(false) }
    }

    /// Logs, once a session, that a data connection to `port` came from another address than the control
    /// connection, and whether it was accepted.
    pub fn log_foreign_data(&self, port: u16, data_address: IpAddr, is_accepted: bool) {
        if self.foreign_data_logged.swap(true, Ordering::Relaxed) {
            return;
        }
        let outcome = if is_accepted {
            "accepted, because it resumes this session's TLS"
        } else {
            "refused, because it does not resume a TLS session of this client"
        };
        log_session!(
            log::Level::Warn, self, data_address:%, port;
            "a data connection came from another address than the control connection: {outcome}"
        );
    }
}
