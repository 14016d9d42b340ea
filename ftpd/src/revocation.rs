//! Ends the sessions of users who may not log in any more.
//!
//! Redis has a number, the revision of the accounts, which authd changes with each change after which a
//! session may have to end. A node that sees another number than the one it has handled asks authd about all
//! its sessions, and so it does whenever it has joined the registry, and every `reauthorize_interval`, which
//! also ends sessions outside a user's `hours`. A number is handled when every answer has come: a node or an
//! authd that was away at the time of the change makes up for it.

use std::{sync::Arc, time::Duration};

use common::{
    auth_api::{EndReason, PastLogin, Verdict},
    registry::Revision,
};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{connections::Handle, metrics, node::Node};

/// Waits between attempts when authd does not answer: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Asks for as long as the node runs.
pub async fn run(node: Arc<Node>) {
    let mut revision = node.registry.revision();
    let mut handled: Option<Revision> = None;
    let mut next = Instant::now() + node.timeouts.reauthorize;
    let mut trouble = DependencyFailure::default();
    loop {
        // Before the sessions are listed: a login that is not in the list yet compares it afterwards.
        let seen = *revision.borrow_and_update();
        if handled != Some(seen) || Instant::now() >= next {
            match check_all(&node).await {
                Ok(is_known) => {
                    trouble.is_over(is_known);
                    handled = Some(seen);
                    next = Instant::now() + node.timeouts.reauthorize;
                }
                Err(error) => {
                    sleep(trouble.note(&error)).await;
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

/// Whether authd still accepts this login, which may have begun before a change. `None`: every authd is of an
/// earlier version, which cannot tell.
///
/// # Errors
/// authd did not decide it. What it did instead, for the log.
pub async fn still_authorized(node: &Node, login: &PastLogin) -> Result<Option<Verdict>, String> {
    let verdicts = node.authenticator.authorized(std::slice::from_ref(login)).await?;
    Ok(verdicts.and_then(|verdicts| verdicts.first().copied()))
}

/// Asks about all sessions, and ends those that may not stay. `false`: every authd is of an earlier version,
/// which cannot tell.
async fn check_all(node: &Node) -> Result<bool, String> {
    let (logins, sessions): (Vec<PastLogin>, Vec<Vec<Arc<Handle>>>) =
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
                        tell(handle, login, reason);
                    }
                }
            }
        }
    }
    match undecided {
        0 => Ok(true),
        _ => Err(format!("authd cannot decide about {undecided} of {} logins now", logins.len())),
    }
}

/// Logs and counts a session that may not stay.
pub fn tell(handle: &Handle, login: &PastLogin, reason: EndReason) {
    metrics::session_revoked(reason.as_str());
    log::warn!(
        session:% = handle.id, user = login.user.as_str(), address:% = login.address,
        reason = reason.as_str();
        "the session ends: authd would not accept its login now"
    );
}

/// What the reply 421 says to the client.
pub fn message(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Removed => "Session ended: this user does not exist any more",
        EndReason::Disabled => "Session ended: this user is disabled",
        EndReason::CredentialChanged => {
            "Session ended: the password or certificate has changed; log in again"
        }
        EndReason::AddressNotAllowed => "Session ended: this user may not connect from your address",
        EndReason::TimeNotAllowed => "Session ended: this user may not be logged in at this time",
        EndReason::Unknown => "Session ended: this user may not be logged in now",
    }
}

/// What the log knows of an authd that does not tell which sessions may stay.
#[derive(Default)]
struct DependencyFailure {
    pause: Option<Duration>,
    is_unknown_logged: bool,
}

impl DependencyFailure {
    /// Returns how long to wait before the next attempt.
    fn note(&mut self, error: &str) -> Duration {
        metrics::reauthorization("failed");
        let pause = match self.pause {
            Some(pause) => (pause * 2).min(LONGEST_PAUSE),
            None => {
                log::warn!(error; "authd does not say which sessions may stay; they go on, and the node asks again");
                FIRST_PAUSE
            }
        };
        self.pause = Some(pause);
        pause
    }

    /// authd has answered. `is_known`: it has the route.
    fn is_over(&mut self, is_known: bool) {
        metrics::reauthorization(if is_known { "answered" } else { "unsupported" });
        if self.pause.take().is_some() {
            log::info!("authd says again which sessions may stay");
        }
        if !is_known && !std::mem::replace(&mut self.is_unknown_logged, true) {
            log::warn!(
                "authd is of an earlier version, which cannot say which sessions may stay (POST /v1/authorized): \
                 a session of a removed user ends only if the node hears of the removal at once; upgrade authd"
            );
        }
    }
}
