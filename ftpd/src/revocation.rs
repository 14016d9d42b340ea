//! Revocation: ends the sessions whose login authd would no longer accept.
//!
//! authd changes a number in Redis, the revision of the accounts, with each change after which a session may
//! have to end. A node asks authd about all its sessions when the revision differs from the one it handled
//! last, after it has joined the registry, and every `reauthorize_interval`. The latter also ends sessions
//! outside a user's `hours`. A revision counts as handled when authd has answered about all sessions, so
//! that no change is missed while a node or authd is down.

use std::{sync::Arc, time::Duration};

use common::{
    auth_api::{EndReason, PastLogin, Verdict},
    registry::Revision,
};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{connection_table::SessionHandle, metrics, node::Node};

/// The first and the longest pause between attempts while authd does not answer.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Keeps asking authd until the node ends.
pub(crate) async fn run(node: Arc<Node>) {
    let mut revision = node.registry.revision();
    let mut handled: Option<Revision> = None;
    let mut next = Instant::now() + node.timeouts.reauthorize;
    let mut outage = AuthdOutage::default();
    loop {
        // Read before the sessions are listed: a login that is not in the list yet compares the revision
        // later.
        let seen = *revision.borrow_and_update();
        if handled != Some(seen) || Instant::now() >= next {
            match check_all(&node).await {
                Ok(is_supported) => {
                    outage.end(is_supported);
                    handled = Some(seen);
                    next = Instant::now() + node.timeouts.reauthorize;
                }
                Err(error) => {
                    sleep(outage.note(&error)).await;
                    continue;
                }
            }
        }
        tokio::select! {
            changed = revision.changed() => if changed.is_err() {
                return;
            },
            () = sleep_until(next) => {}
        }
    }
}

/// Asks authd whether it would accept this login now. `None`: all authd instances are of an earlier version,
/// which does not support the question.
///
/// # Errors
/// authd gave no answer; the text is for the log.
pub(crate) async fn still_authorized(node: &Node, login: &PastLogin) -> Result<Option<Verdict>, String> {
    let verdicts = node.authenticator.authorized(std::slice::from_ref(login)).await?;
    Ok(verdicts.and_then(|verdicts| verdicts.first().copied()))
}

/// Asks authd about all sessions, and ends those that authd would no longer accept. Returns false if all
/// authd instances are of an earlier version, which does not support the question.
async fn check_all(node: &Node) -> Result<bool, String> {
    let (logins, sessions): (Vec<PastLogin>, Vec<Vec<Arc<SessionHandle>>>) =
        node.connections.logins().into_iter().unzip();
    if logins.is_empty() {
        return Ok(true);
    }
    let Some(verdicts) = node.authenticator.authorized(&logins).await? else { return Ok(false) };
    let mut undecided = 0;
    for ((login, handles), verdict) in logins.iter().zip(&sessions).zip(verdicts) {
        match verdict {
            Verdict::Stay => {}
            Verdict::Undecided => undecided += 1,
            Verdict::End { reason } => {
                for handle in handles {
                    if handle.revoke(login, reason) {
                        log_revocation(handle, login, reason);
                    }
                }
            }
        }
    }
    match undecided {
        0 => Ok(true),
        _ => Err(format!("authd cannot decide about {undecided} of {} logins at this time", logins.len())),
    }
}

/// Logs and counts a revoked session.
pub(crate) fn log_revocation(handle: &SessionHandle, login: &PastLogin, reason: EndReason) {
    metrics::session_revoked(reason.as_str());
    log::warn!(
        session:% = handle.id, user = login.user.as_str(), address:% = login.address,
        reason = reason.as_str();
        "session revoked: authd would no longer accept its login"
    );
}

/// The text of the 421 reply to a revoked session.
pub(crate) fn reply_text(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Removed => "Session ended: the account was removed",
        EndReason::Disabled => "Session ended: the account is disabled",
        EndReason::CredentialChanged => {
            "Session ended: the password or certificate was changed; log in again"
        }
        EndReason::AddressNotAllowed => "Session ended: the account may not be used from your address",
        EndReason::TimeNotAllowed => "Session ended: the account may not be used at this time",
        EndReason::Blocked => "Session ended: an administrator has blocked this login",
        EndReason::Unknown => "Session ended: the login is no longer accepted",
    }
}

/// Keeps track of an outage of authd, for the pauses and the log.
#[derive(Default)]
struct AuthdOutage {
    /// The last pause. `None`: authd has answered the last question.
    pause: Option<Duration>,
    /// The log has the warning about authd's version.
    has_logged_version: bool,
}

impl AuthdOutage {
    /// Notes a failed attempt. Returns the pause before the next one.
    fn note(&mut self, error: &str) -> Duration {
        metrics::reauthorization("failed");
        let pause = match self.pause {
            Some(pause) => (pause * 2).min(LONGEST_PAUSE),
            None => {
                log::warn!(
                    error;
                    "authd does not answer which sessions may continue; all continue, and the node asks again"
                );
                FIRST_PAUSE
            }
        };
        self.pause = Some(pause);
        pause
    }

    /// Notes an answer. `is_supported`: authd supports the question.
    fn end(&mut self, is_supported: bool) {
        metrics::reauthorization(if is_supported { "answered" } else { "unsupported" });
        if self.pause.take().is_some() {
            log::info!("authd answers again which sessions may continue");
        }
        if !is_supported && !std::mem::replace(&mut self.has_logged_version, true) {
            log::warn!(
                "authd is of an earlier version, which does not support POST /v1/authorized: the session of \
                 a removed user ends only if this node is connected to Redis at the time of the removal; \
                 upgrade authd"
            );
        }
    }
}
