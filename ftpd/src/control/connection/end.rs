//! When and how a control connection ends: timeouts, requests, and the end of the activity beside it.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{ActivityState, ControlConnection};
use crate::{
    connection_table::{EndRequest, SessionHandle},
    identity::log_session,
    metrics,
    session::{EndedByNode, LoginState},
    work::activity::{Activity, CancelledBy},
};

/// Why a connection ends.
pub(super) enum ConnectionEnd {
    /// Without a further reply.
    Silent,
    /// The node ends the connection, with this reply.
    ByNode(EndedByNode),
    ClientGone,
}

impl ConnectionEnd {
    pub(super) fn by_node(text: &'static str, reason: &'static str) -> Self {
        Self::ByNode(EndedByNode::new(text, reason))
    }
}

impl ControlConnection {
    /// The end of a session that has reached `session_max_age`, unless an activity runs.
    pub(super) fn reached_max_age(&self) -> Option<ConnectionEnd> {
        let is_over =
            matches!(self.activity, ActivityState::Idle) && Instant::now() >= self.max_age_time()?;
        is_over.then(|| {
            ConnectionEnd::by_node(
                "Session reached its maximum age (session_max_age); log in again",
                "max_age",
            )
        })
    }

    /// The time at which the session reaches `session_max_age`. `None` without the limit, or without a login.
    fn max_age_time(&self) -> Option<Instant> {
        let age = self.session.node.timeouts.session_age?;
        self.session.is_logged_in().then(|| self.login_changed + age)
    }

    /// The end of the session if it was requested: at once, or when no activity runs.
    pub(super) fn requested_end(&self) -> Option<ConnectionEnd> {
        match self.session.handle.end_request()? {
            EndRequest::Drain if matches!(self.activity, ActivityState::Running { .. }) => None,
            EndRequest::Drain => Some(ConnectionEnd::by_node(
                "Server is shutting down for maintenance; please reconnect",
                "drain",
            )),
            EndRequest::MakeRoom | EndRequest::EndSession | EndRequest::StopNode => {
                EndedByNode::at_once(&self.session.handle).map(ConnectionEnd::ByNode)
            }
        }
    }

    /// The time at which the timer has to fire.
    pub(super) fn deadline(&self) -> Instant {
        let timeouts = &self.session.node.timeouts;
        match (&self.activity, self.session.is_logged_in()) {
            // An activity has limits of its own. The idle time starts at its end.
            (ActivityState::Running { .. }, _) => Instant::now() + timeouts.idle,
            (ActivityState::Idle, true) => {
                let idle = self.last_used + timeouts.idle;
                self.max_age_time().map_or(idle, |max_age| max_age.min(idle))
            }
            (ActivityState::Idle, false) => self.login_changed + timeouts.login,
        }
    }

    /// The end of the session if its deadline has passed.
    pub(super) fn expired(&self) -> Option<ConnectionEnd> {
        if self.deadline() > Instant::now() {
            return None;
        }
        Some(if let Some(end) = self.reached_max_age() {
            end
        } else if self.session.is_logged_in() {
            ConnectionEnd::by_node("Idle timeout", "idle_timeout")
        } else {
            ConnectionEnd::by_node("Login timeout", "login_timeout")
        })
    }

    /// The end, without a reply, of a connection with lines of another protocol. The client is no FTP client,
    /// or an attacker's page or mail makes a victim's client send such lines (ALPACA, CVE-2021-3618).
    pub(super) fn end_foreign_protocol(&self) -> ConnectionEnd {
        metrics::session_ended("foreign_protocol");
        self.session.note_end("foreign_protocol");
        if self.may_log("foreign_protocol") {
            log::warn!(
                session:% = self.session.handle.id, address:% = self.session.addresses.client.ip();
                "the client speaks another protocol"
            );
        }
        ConnectionEnd::Silent
    }

    /// Ends the session: sends the last reply, ends the activity, logs the end, and closes the connection.
    pub(super) async fn finish(mut self, end: ConnectionEnd) {
        let cancelled_by = match (&end, self.session.handle.end_request()) {
            (ConnectionEnd::ClientGone, _) => CancelledBy::ClientGone,
            (_, Some(EndRequest::EndSession)) => CancelledBy::Administrator,
            (_, Some(EndRequest::StopNode)) => CancelledBy::NodeStop,
            (_, Some(EndRequest::Drain | EndRequest::MakeRoom) | None) => CancelledBy::SessionEnd,
        };
        if let ConnectionEnd::ByNode(EndedByNode { reply, reason }) = &end {
            metrics::session_ended(reason);
            if self.session.is_logged_in() || self.may_log(reason) {
                log::info!(
                    session:% = self.session.handle.id, address:% = self.session.addresses.client.ip(),
                    reason = *reason, given = self.session.handle.end_reason();
                    "session ended by the node"
                );
            }
            self.push(reply);
        }
        if let ActivityState::Running { activity, .. } =
            std::mem::replace(&mut self.activity, ActivityState::Idle)
        {
            self.end_activity(activity, cancelled_by).await;
            self.session.handle.activity.end_activity();
        }
        self.session.note_end(match &end {
            ConnectionEnd::ByNode(EndedByNode { reason, .. }) => reason,
            ConnectionEnd::Silent => "quit",
            ConnectionEnd::ClientGone => "client_gone",
        });
        if let LoginState::LoggedIn(logged_in) = &self.session.state {
            log_session!(log::Level::Info, logged_in.identity; "session ended");
        }
        self.stream.close().await;
    }

    /// Cancels the activity and waits for its end. Its thread may still write until then, so the write lease
    /// and the session must last as long. An upload whose client has left is not cancelled.
    async fn end_activity(&mut self, activity: Activity, cancelled_by: CancelledBy) {
        if cancelled_by == CancelledBy::ClientGone && activity.is_upload {
            let silence = self.session.node.timeouts.client_left;
            finish_upload_of_absent_client(&self.session.handle, activity, silence).await;
        } else {
            activity.handle.cancel(cancelled_by);
            // Fails if the client has left already.
            let _ = self.stream.flush().await;
            activity.run.await;
        }
    }
}

/// Lets an upload whose client has left store the bytes that are still in transit, for a bounded time: see
/// [`crate::work::activity::ActivityHandle::await_rest`]. A request to end the session or the node ends the
/// upload at once.
async fn finish_upload_of_absent_client(session: &SessionHandle, mut activity: Activity, silence: Duration) {
    let upload = Arc::clone(&activity.handle);
    let end_request = async {
        loop {
            match session.end_request() {
                Some(EndRequest::EndSession) => return CancelledBy::Administrator,
                Some(EndRequest::StopNode) => return CancelledBy::NodeStop,
                // A drain lets activities finish. MakeRoom ends only connections without a login.
                Some(EndRequest::Drain | EndRequest::MakeRoom) | None => session.end_requested().await,
            }
        }
    };
    let limits = async {
        tokio::select! {
            () = upload.await_rest(silence) => {}
            by = end_request => upload.cancel(by),
        }
        // The activity ends soon. Its end completes the `select!` below.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        _ = activity.run.as_mut() => {}
        () = limits => {}
    }
}
