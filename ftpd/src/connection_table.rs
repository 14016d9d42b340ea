//! The table of the node's control connections: limits on their number, and requests to end them.

mod session_handle;

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering},
    time::Duration,
};

use common::{
    auth_api::PastLogin,
    client_network::network_of,
    live::{DialogueLine, SessionDetails},
    session::SessionId,
    sync,
};
use tokio::{sync::Notify, time::Instant};

use self::session_handle::SessionUser;
pub use self::session_handle::{EndRequest, SessionHandle};
use crate::{
    dialogue::{Dialogue, DialogueMemory},
    live::Traffic,
    metrics,
};

/// All control connections of the node.
pub struct ConnectionTable {
    max_connections: u32,
    max_per_network: u32,
    dialogues: Arc<DialogueMemory>,
    inner: Mutex<ConnectionTableInner>,
    /// Notified when a connection ends.
    ended: Notify,
}

#[derive(Default)]
struct ConnectionTableInner {
    handles: HashMap<SessionId, Arc<SessionHandle>>,
    per_network: HashMap<IpAddr, u32>,
    /// Connections in the order of their arrival. Connections that have ended or logged in are removed when
    /// they reach the front.
    not_logged_in: VecDeque<Arc<SessionHandle>>,
    /// Networks from which a user has logged in, with the time of the last login.
    known_networks: HashMap<IpAddr, Instant>,
    draining: bool,
    /// Bytes of the sessions that have ended.
    past: Traffic,
}

/// One connection in this many of `max_sessions` is reserved for known networks.
const RESERVED_ONE_IN: u32 = 10;

/// On a full node, a connection that has not logged in for this long is ended to make room for a new one.
const LOGIN_GRACE: Duration = Duration::from_secs(10);

/// Time after a login for which its network is known.
const KNOWN_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// Maximum number of known networks; each takes about 50 bytes. When it is reached, further networks are not
/// remembered until older ones expire.
const MAX_KNOWN_NETWORKS: usize = 50_000;

/// Why a connection gets 421 instead of a greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdmissionError {
    TooMany,
    TooManyFromAddress,
    Draining,
}

/// The entry of a connection in the table. Dropping it removes the connection.
pub struct ConnectionEntry {
    connections: Arc<ConnectionTable>,
    handle: Arc<SessionHandle>,
}

impl ConnectionTable {
    pub fn new(max_connections: u32, max_per_network: u32, dialogues: Arc<DialogueMemory>) -> Self {
        Self { max_connections, max_per_network, dialogues, inner: Mutex::default(), ended: Notify::new() }
    }

    fn inner(&self) -> MutexGuard<'_, ConnectionTableInner> {
        sync::lock(&self.inner)
    }

    /// Adds a connection from the client address `address`.
    ///
    /// # Errors
    /// A limit is reached, or the node drains.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<ConnectionEntry, AdmissionError> {
        let mut inner = self.inner();
        if inner.draining {
            return Err(AdmissionError::Draining);
        }
        let network = network_of(address);
        if inner.per_network.get(&network).copied().unwrap_or(0) >= self.max_per_network {
            metrics::limit_reached("max_sessions_per_address");
            return Err(AdmissionError::TooManyFromAddress);
        }
        let now = Instant::now();
        let reserved = if inner.is_known(network, now) { 0 } else { self.max_connections / RESERVED_ONE_IN };
        // A connection that makes room ends a moment later. Until then there may be a few more connections
        // than `max_sessions`.
        if inner.handles.len() >= (self.max_connections - reserved) as usize && !inner.make_room(now) {
            metrics::limit_reached("max_sessions");
            return Err(AdmissionError::TooMany);
        }
        *inner.per_network.entry(network).or_insert(0) += 1;
        let handle = Arc::new(SessionHandle::new(address, now, Dialogue::new(Arc::clone(&self.dialogues))));
        inner.handles.insert(handle.id, Arc::clone(&handle));
        inner.not_logged_in.push_back(Arc::clone(&handle));
        metrics::connection_opened();
        Ok(ConnectionEntry { connections: Arc::clone(self), handle })
    }

    /// Notes a login: the connection no longer has to make room, and its network is known from now on.
    pub fn note_login(&self, handle: &SessionHandle) {
        handle.has_logged_in.store(true, Ordering::Release);
        self.inner().remember_network(network_of(handle.address), Instant::now());
    }

    /// Ends one session, with the administrator's reason. Returns false if this node has no such session.
    pub fn end_session(&self, id: SessionId, reason: Option<&str>) -> bool {
        let handle = self.inner().handles.get(&id).cloned();
        handle.inspect(|handle| handle.end_for(reason)).is_some()
    }

    /// The bytes of all sessions since the node's start.
    pub fn traffic(&self) -> Traffic {
        let inner = self.inner();
        inner.handles.values().fold(inner.past, |sum, handle| sum.plus(handle.activity.traffic()))
    }

    /// The dialogue of a session. `None`: this node has no such session, or keeps no dialogues.
    pub fn dialogue(&self, id: SessionId) -> Option<Vec<DialogueLine>> {
        let handle = self.inner().handles.get(&id).cloned()?;
        handle.dialogue.is_kept().then(|| handle.dialogue.lines())
    }

    /// The details of all sessions whose user has logged in.
    pub fn details(&self) -> Vec<SessionDetails> {
        let handles: Vec<_> = self.inner().handles.values().cloned().collect();
        let is_logged_in = |handle: &&Arc<SessionHandle>| handle.has_logged_in.load(Ordering::Acquire);
        handles.iter().filter(is_logged_in).map(|handle| handle.activity.details(handle.id)).collect()
    }

    /// Ends all sessions of a user. A login that is still being decided is not ended but must be confirmed
    /// by authd: the client may already use the new password, for example.
    pub fn end_user(&self, user: &str, reason: Option<&str>) {
        for handle in self.inner().handles.values() {
            // Set while the user is locked, so that a later `log_in` sees the flag.
            match &*handle.user() {
                SessionUser::LoggedIn(login) if login.user == user => {
                    handle.end_for(reason);
                }
                SessionUser::Claimed(name) if **name == *user => {
                    handle.must_confirm.store(true, Ordering::Release);
                }
                SessionUser::Unknown | SessionUser::Claimed(_) | SessionUser::LoggedIn(_) => {}
            }
        }
    }

    /// The logins of all sessions, with the sessions of each.
    pub fn logins(&self) -> HashMap<PastLogin, Vec<Arc<SessionHandle>>> {
        let mut logins = HashMap::<PastLogin, Vec<Arc<SessionHandle>>>::new();
        for handle in self.inner().handles.values() {
            if let SessionUser::LoggedIn(login) = &*handle.user() {
                logins.entry((**login).clone()).or_default().push(Arc::clone(handle));
            }
        }
        logins
    }

    /// Admits no further connection.
    pub fn stop_admitting(&self) {
        self.inner().draining = true;
    }

    /// Admits no further connection, and requests the end of all connections.
    pub fn end_all(&self, request: EndRequest) {
        self.stop_admitting();
        for handle in self.inner().handles.values() {
            handle.request_end(request);
        }
    }

    /// Ends a drain: admits connections again, and lets those go on that would have ended.
    pub fn resume(&self) {
        let mut inner = self.inner();
        inner.draining = false;
        for handle in inner.handles.values() {
            handle.withdraw_drain();
        }
    }

    pub fn is_draining(&self) -> bool {
        self.inner().draining
    }

    pub fn count(&self) -> usize {
        self.inner().handles.len()
    }

    /// Returns when no connection is left.
    pub async fn all_ended(&self) {
        loop {
            let mut ended = Box::pin(self.ended.notified());
            ended.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            ended.await;
        }
    }
}

impl ConnectionTableInner {
    fn is_known(&self, network: IpAddr, now: Instant) -> bool {
        self.known_networks.get(&network).is_some_and(|login| now.duration_since(*login) < KNOWN_FOR)
    }

    fn remember_network(&mut self, network: IpAddr, now: Instant) {
        let known = &mut self.known_networks;
        if known.len() >= MAX_KNOWN_NETWORKS && !known.contains_key(&network) {
            known.retain(|_, login| now.duration_since(*login) < KNOWN_FOR);
            if known.len() >= MAX_KNOWN_NETWORKS {
                return;
            }
        }
        known.insert(network, now);
    }

    /// Ends the oldest connection that has not logged in for [`LOGIN_GRACE`]. Returns false if there is
    /// none.
    fn make_room(&mut self, now: Instant) -> bool {
        while let Some(oldest) = self.not_logged_in.front() {
            let is_waiting = oldest.is_waiting_for_login();
            if is_waiting && now.duration_since(oldest.since) < LOGIN_GRACE {
                return false;
            }
            let Some(oldest) = self.not_logged_in.pop_front() else { return false };
            if is_waiting {
                oldest.request_end(EndRequest::MakeRoom);
                return true;
            }
        }
        false
    }

    /// Removes connections that have ended or logged in from `not_logged_in`.
    fn prune_not_logged_in(&mut self) {
        while self.not_logged_in.front().is_some_and(|oldest| !oldest.is_waiting_for_login()) {
            self.not_logged_in.pop_front();
        }
        // A silent connection at the front keeps the others in the queue until `login_timeout` ends it.
        if self.not_logged_in.len() > 2 * self.handles.len() + 64 {
            self.not_logged_in.retain(|handle| handle.is_waiting_for_login());
        }
    }
}

impl ConnectionEntry {
    pub fn handle(&self) -> &Arc<SessionHandle> {
        &self.handle
    }
}

impl Drop for ConnectionEntry {
    fn drop(&mut self) {
        let mut inner = self.connections.inner();
        inner.handles.remove(&self.handle.id);
        inner.past = inner.past.plus(self.handle.activity.traffic());
        self.handle.has_ended.store(true, Ordering::Release);
        let network = network_of(self.handle.address);
        if let Some(count) = inner.per_network.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                inner.per_network.remove(&network);
            }
        }
        inner.prune_not_logged_in();
        drop(inner);
        metrics::connection_closed();
        self.connections.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use common::auth_api::EndReason;

    use super::*;

    #[test]
    fn ended_connections_no_longer_count_to_the_limits() {
        let connections = Arc::new(ConnectionTable::new(3, 2, DialogueMemory::new(0, 0)));
        let [anna, bert] = [1, 2].map(|i| IpAddr::V4(Ipv4Addr::new(192, 0, 2, i)));
        let first = connections.admit(anna).ok().unwrap();
        let _second = connections.admit(anna).ok().unwrap();
        assert_eq!(connections.admit(anna).err(), Some(AdmissionError::TooManyFromAddress));
        let _third = connections.admit(bert).ok().unwrap();
        assert_eq!(connections.admit(bert).err(), Some(AdmissionError::TooMany));
        drop(first);
        assert!(connections.admit(anna).is_ok());
    }

    #[test]
    fn all_addresses_of_an_ipv6_64_network_share_one_limit() {
        let connections = Arc::new(ConnectionTable::new(100, 2, DialogueMemory::new(0, 0)));
        let admit = |address: &str| connections.admit(address.parse().unwrap());
        let first = admit("2001:db8:1:2::1").ok().unwrap();
        let _second = admit("2001:db8:1:2:3:4:5:6").ok().unwrap();
        assert_eq!(admit("2001:db8:1:2::9").err(), Some(AdmissionError::TooManyFromAddress));
        let _other = admit("2001:db8:1:3::1").ok().unwrap();
        drop(first);
        assert!(admit("2001:db8:1:2::9").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_nearly_full_node_the_oldest_connection_without_login_makes_room() {
        let connections = Arc::new(ConnectionTable::new(10, 10, DialogueMemory::new(0, 0)));
        let stranger = |i: u8| IpAddr::V4(Ipv4Addr::new(198, 51, 100, i));
        let entries: Vec<_> = (0..9).map(|i| connections.admit(stranger(i)).ok().unwrap()).collect();
        assert_eq!(
            connections.admit(stranger(9)).err(),
            Some(AdmissionError::TooMany),
            "one tenth is reserved for known networks"
        );
        connections.note_login(entries[0].handle());
        tokio::time::advance(LOGIN_GRACE).await;
        let newcomer = connections.admit(stranger(9)).ok().unwrap();
        assert_eq!(entries[0].handle().end_request(), None, "it has logged in");
        assert_eq!(entries[1].handle().end_request(), Some(EndRequest::MakeRoom));
        assert_eq!(entries[2].handle().end_request(), None);
        drop(newcomer);
        drop(entries);
        assert!(connections.inner().not_logged_in.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_with_a_recent_login_is_admitted_during_a_flood() {
        let connections = Arc::new(ConnectionTable::new(10, 10, DialogueMemory::new(0, 0)));
        let client = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        let first = connections.admit(client).ok().unwrap();
        connections.note_login(first.handle());
        drop(first);
        let flood: Vec<_> =
            (0..100).filter_map(|i| connections.admit(Ipv4Addr::new(198, 51, 100, i).into()).ok()).collect();
        assert_eq!(flood.len(), 9);
        let _again = connections.admit(client).ok().unwrap();
        tokio::time::advance(KNOWN_FOR).await;
        connections.note_login(flood[0].handle());
        assert_eq!(connections.admit(client).err(), None, "a silent connection made room");
    }

    #[tokio::test]
    async fn an_end_request_reaches_its_session_and_the_most_urgent_one_counts() {
        let connections = Arc::new(ConnectionTable::new(9, 9, DialogueMemory::new(0, 0)));
        let entry = connections.admit(Ipv4Addr::LOCALHOST.into()).ok().unwrap();
        entry.handle().log_in(login("anna"));
        connections.end_user("bert", None);
        assert_eq!(entry.handle().end_request(), None);
        connections.end_user("anna", None);
        connections.end_all(EndRequest::Drain);
        entry.handle().end_requested().await;
        assert_eq!(entry.handle().end_request(), Some(EndRequest::EndSession));
        assert_eq!(connections.admit(Ipv4Addr::LOCALHOST.into()).err(), Some(AdmissionError::Draining));
        drop(entry);
        connections.all_ended().await;
    }

    #[tokio::test]
    async fn after_a_drain_that_was_undone_connections_are_admitted_and_sessions_go_on() {
        let connections = Arc::new(ConnectionTable::new(9, 9, DialogueMemory::new(0, 0)));
        let [stays, ends] =
            [1, 2].map(|i| connections.admit(Ipv4Addr::new(192, 0, 2, i).into()).ok().unwrap());
        ends.handle().log_in(login("anna"));
        connections.end_all(EndRequest::Drain);
        connections.end_user("anna", None);
        connections.resume();
        assert_eq!(stays.handle().end_request(), None);
        assert_eq!(ends.handle().end_request(), Some(EndRequest::EndSession), "an administrator ends it");
        assert!(connections.admit(Ipv4Addr::LOCALHOST.into()).is_ok());
    }

    fn login(user: &str) -> PastLogin {
        PastLogin { user: user.to_owned(), version: None, address: Ipv4Addr::LOCALHOST.into() }
    }

    #[test]
    fn a_login_must_be_confirmed_if_the_users_sessions_are_ended_meanwhile() {
        let connections = Arc::new(ConnectionTable::new(9, 9, DialogueMemory::new(0, 0)));
        let entry = connections.admit(Ipv4Addr::LOCALHOST.into()).ok().unwrap();
        entry.handle().set_user(Some("anna"));
        assert!(connections.logins().is_empty());
        connections.end_user("bert", None);
        connections.end_user("anna", None);
        assert_eq!(entry.handle().end_request(), None);
        assert!(entry.handle().log_in(login("anna")));
        // The next login on this connection need not be confirmed.
        assert!(!entry.handle().log_in(login("anna")));
    }

    #[test]
    fn a_session_is_revoked_once_and_only_for_its_current_login() {
        let connections = Arc::new(ConnectionTable::new(9, 9, DialogueMemory::new(0, 0)));
        let entry = connections.admit(Ipv4Addr::LOCALHOST.into()).ok().unwrap();
        let login = |version: &str| PastLogin {
            user: "anna".to_owned(),
            version: Some(version.to_owned()),
            address: Ipv4Addr::LOCALHOST.into(),
        };
        entry.handle().log_in(login("1"));
        let found = connections.logins();
        assert_eq!(found[&login("1")].len(), 1);
        // REIN, and another login.
        entry.handle().log_in(login("2"));
        assert!(!entry.handle().revoke(&login("1"), EndReason::Disabled));
        assert_eq!(entry.handle().end_request(), None);
        assert!(entry.handle().revoke(&login("2"), EndReason::Disabled));
        assert!(!entry.handle().revoke(&login("2"), EndReason::Removed));
        assert_eq!(entry.handle().revocation(), Some(EndReason::Disabled));
        assert_eq!(entry.handle().end_request(), Some(EndRequest::EndSession));
    }
}
