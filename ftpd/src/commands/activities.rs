//! Starting transfers and long commands for a session.

use std::sync::Arc;

use crate::{
    data::{DataPort, Protection},
    protocol::{Code, Reply},
    session::{LoggedIn, Outcome},
    tls::TlsPolicy,
    transfer::{self, SessionParts, Transfer},
    work::activity::ActivityHandle,
};

/// Takes the data port that PASV, EPSV, PORT or EPRT arranged.
///
/// # Errors
/// 425: there is no data port. 521: the data connection would not be encrypted, but must be (RFC 4217 section
/// 9).
pub(super) fn take_port(session: &mut LoggedIn) -> Result<DataPort, Reply> {
    let node_requires = session.node.tls.as_ref().is_some_and(|tls| tls.settings.data == TlsPolicy::Required);
    if !session.is_private && (node_requires || session.account.tls.data) {
        session.data_port = None;
        return Err(Reply::new(Code::PROTECTION_REQUIRED, "Data connections must be encrypted: PROT P"));
    }
    let port = session.data_port.take();
    if port.as_ref().is_some_and(DataPort::is_given_up) {
        let text = "The passive port was given up (data_connect_timeout): send PASV or EPSV again";
        return Err(Reply::new(Code::NO_DATA_CONNECTION, text).because("passive_port_given_up"));
    }
    port.ok_or_else(|| {
        Reply::new(Code::NO_DATA_CONNECTION, "PASV, EPSV, PORT or EPRT comes first").because("no_data_port")
    })
}

/// Starts a transfer. `opening` is the reply that the client gets at once.
pub(super) fn start_transfer(
    session: &LoggedIn,
    port: DataPort,
    transfer: Transfer,
    opening: Reply,
) -> Outcome {
    let stored_at = session.jail.path_in_storage(&transfer.path);
    let parts = SessionParts { slot: session.transfer_slot_request(), ..parts(session) };
    Outcome::Start(Some(opening), transfer::start(parts, port, protection(session), transfer, stored_at))
}

/// Runs a long command; `work` returns its reply.
pub(super) fn run_in_background(
    session: &LoggedIn,
    handle: Arc<ActivityHandle>,
    work: impl FnOnce() -> Reply + Send + 'static,
) -> Outcome {
    Outcome::Start(None, transfer::run_in_background(parts(session), handle, work))
}

fn parts(session: &LoggedIn) -> SessionParts {
    SessionParts {
        node: Arc::clone(&session.node),
        failures: Arc::clone(&session.failures),
        slot: session.slot_request(),
        audited: session.audited.clone(),
    }
}

/// The encryption of the session's data connections; `None` after PROT C.
fn protection(session: &LoggedIn) -> Option<Protection> {
    let tls = session.node.tls.as_ref().filter(|_| session.is_private)?;
    let of_account = session.account.tls.close_notify;
    Some(Protection {
        tls: Arc::clone(tls),
        session: session.identity.session,
        resumption: Arc::clone(&session.resumption),
        close_notify_required: of_account.unwrap_or(tls.settings.close_notify_required),
    })
}
