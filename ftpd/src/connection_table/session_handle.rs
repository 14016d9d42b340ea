//! One control connection, as the rest of the node sees it: its user, and requests to end it.

use std::{
    net::IpAddr,
    sync::{
        Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use common::{
    auth_api::{EndReason, PastLogin},
    session::SessionId,
    sync,
};
use tokio::{sync::Notify, time::Instant};

use crate::{dialogue::Dialogue, live::SessionActivity};

/// One control connection, as the rest of the node sees it.
pub struct SessionHandle {
    pub id: SessionId,
    pub address: IpAddr,
    user: Mutex<SessionUser>,
    end_request: AtomicU8,
    end_requested: Notify,
    pub(super) since: Instant,
    pub(super) has_logged_in: AtomicBool,
    pub(super) has_ended: AtomicBool,
    /// All sessions of the user were ended while this login was being decided.
    pub(super) must_confirm: AtomicBool,
    /// The reason why authd would no longer accept the session's login.
    revocation: OnceLock<EndReason>,
    /// The reason that an administrator gave for the end of the session.
    end_reason: OnceLock<Box<str>>,
    pub activity: SessionActivity,
    pub dialogue: Dialogue,
}

/// The user of a connection.
#[derive(Default)]
pub(super) enum SessionUser {
    #[default]
    Unknown,
    /// A login with this name is being decided. authd may know the user by another spelling of the name.
    Claimed(Box<str>),
    LoggedIn(Box<PastLogin>),
}

/// A request to end a connection. A later request counts only if it is more urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum EndRequest {
    /// The node drains: end when no activity runs.
    Drain = 1,
    /// End now: the client has not logged in, and another connection needs its place.
    MakeRoom = 2,
    /// End now: an administrator or authd ends the session.
    EndSession = 3,
    /// End now: the node stops.
    StopNode = 4,
}

impl SessionHandle {
    pub(super) fn new(address: IpAddr, now: Instant, dialogue: Dialogue) -> Self {
        Self {
            id: SessionId::random(),
            address,
            user: Mutex::default(),
            end_request: AtomicU8::new(0),
            end_requested: Notify::new(),
            since: now,
            has_logged_in: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            must_confirm: AtomicBool::new(false),
            revocation: OnceLock::new(),
            end_reason: OnceLock::new(),
            activity: SessionActivity::default(),
            dialogue,
        }
    }

    pub(super) fn is_waiting_for_login(&self) -> bool {
        !self.has_logged_in.load(Ordering::Acquire) && !self.has_ended.load(Ordering::Acquire)
    }

    pub(super) fn request_end(&self, request: EndRequest) {
        self.end_request.fetch_max(request as u8, Ordering::AcqRel);
        self.end_requested.notify_one();
    }

    /// Withdraws the request of a drain. A more urgent request stays.
    pub(super) fn withdraw_drain(&self) {
        let drain = EndRequest::Drain as u8;
        // An error means that another request stands, or none.
        let _ = self.end_request.compare_exchange(drain, 0, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Ends the session for an administrator. Only the first reason is kept.
    pub(super) fn end_for(&self, reason: Option<&str>) {
        if let Some(reason) = reason {
            let _ = self.end_reason.set(reason.into());
        }
        self.request_end(EndRequest::EndSession);
    }

    /// The reason that an administrator gave for the end of the session.
    pub fn end_reason(&self) -> Option<&str> {
        self.end_reason.get().map(|reason| &**reason)
    }

    /// The most urgent request so far.
    pub fn end_request(&self) -> Option<EndRequest> {
        match self.end_request.load(Ordering::Acquire) {
            0 => None,
            1 => Some(EndRequest::Drain),
            2 => Some(EndRequest::MakeRoom),
            3 => Some(EndRequest::EndSession),
            _ => Some(EndRequest::StopNode),
        }
    }

    /// Returns when an end was requested since the last call. Cancel-safe.
    pub async fn end_requested(&self) {
        self.end_requested.notified().await;
    }

    /// Notes the name of a login that is being decided. `None`: no user is logged in.
    pub fn set_user(&self, user: Option<&str>) {
        *self.user() = user.map_or(SessionUser::Unknown, |name| SessionUser::Claimed(name.into()));
    }

    /// Notes an accepted login: from now on it is among the table's `logins`. Returns true if all sessions of
    /// the user were ended while the login was being decided.
    pub fn log_in(&self, login: PastLogin) -> bool {
        *self.user() = SessionUser::LoggedIn(Box::new(login));
        self.must_confirm.swap(false, Ordering::AcqRel)
    }

    /// Ends the session, if `login` is its current login. Returns true for the first call that does so.
    pub fn revoke(&self, login: &PastLogin, reason: EndReason) -> bool {
        let is_current = matches!(&*self.user(), SessionUser::LoggedIn(current) if **current == *login);
        let is_first = is_current && self.revocation.set(reason).is_ok();
        if is_first {
            self.request_end(EndRequest::EndSession);
        }
        is_first
    }

    /// The reason why authd would no longer accept the session's login, if the session ends for that reason.
    pub fn revocation(&self) -> Option<EndReason> {
        self.revocation.get().copied()
    }

    pub(super) fn user(&self) -> MutexGuard<'_, SessionUser> {
        sync::lock(&self.user)
    }
}
