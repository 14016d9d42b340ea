//! The control connections of this node: how many there may be, and how to reach each of them.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use common::{
    auth_api::{EndReason, PastLogin},
    client_network::network_of,
    session::SessionId,
};
use tokio::{sync::Notify, time::Instant};

use crate::metrics;

/// All control connections.
pub struct Connections {
    most: u32,
    most_per_address: u32,
    live: Mutex<Live>,
    ended: Notify,
}

#[derive(Default)]
struct Live {
    handles: HashMap<SessionId, Arc<Handle>>,
    per_network: HashMap<IpAddr, u32>,
    /// Connections in the order of their arrival. Those that have ended or logged in are removed when they
    /// reach the front.
    not_logged_in: VecDeque<Arc<Handle>>,
    /// Networks from which a user has logged in, and when the latest login was.
    known: HashMap<IpAddr, Instant>,
    draining: bool,
}

/// The last places are for networks that are known: one in so many of `max_sessions`.
const RESERVED: u32 = 10;

/// A connection that has not logged in for this long gives its place to another when no place is free.
const LOGIN_PATIENCE: Duration = Duration::from_secs(10);

/// How long a network is known after a login.
const KNOWN_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// Most networks that are known at once; each takes about 50 bytes. Beyond it a login makes no network known
/// until older ones expire.
const MOST_KNOWN: usize = 50_000;

/// One control connection, as seen from elsewhere in the node.
pub struct Handle {
    pub id: SessionId,
    pub address: IpAddr,
    user: Mutex<User>,
    order: AtomicU8,
    ordered: Notify,
    since: Instant,
    has_logged_in: AtomicBool,
    has_ended: AtomicBool,
    /// The user's sessions were to end while this login was being decided.
    must_confirm: AtomicBool,
    /// Why the session has to end, if authd says so.
    revoked: OnceLock<EndReason>,
}

/// Whose connection it is.
#[derive(Default)]
enum User {
    #[default]
    Unknown,
    /// A login with this name is being decided. authd may write the name in another way.
    Claimed(Box<str>),
    LoggedIn(Box<PastLogin>),
}

/// What a connection is told to do. A later one is only heard if it is more urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Order {
    /// End when nothing runs.
    Drain = 1,
    /// End now: it has not logged in, and another connection needs its place.
    MakeRoom = 2,
    /// End now: an administrator wants it.
    End = 3,
    /// End now: the node goes down.
    Stop = 4,
}

/// Why a connection gets 421 instead of a greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    TooMany,
    TooManyFromAddress,
    Draining,
}

/// A connection's place in the table, until it is dropped.
pub struct Place {
    connections: Arc<Connections>,
    handle: Arc<Handle>,
}

impl Connections {
    pub fn new(most: u32, most_per_address: u32) -> Self {
        Self { most, most_per_address, live: Mutex::default(), ended: Notify::new() }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// A limit is reached, or the node drains.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Place, Refused> {
        let mut live = self.live();
        if live.draining {
            return Err(Refused::Draining);
        }
        let network = network_of(address);
        if live.per_network.get(&network).copied().unwrap_or(0) >= self.most_per_address {
            metrics::limit_reached("max_sessions_per_address");
            return Err(Refused::TooManyFromAddress);
        }
        let now = Instant::now();
        let most = if live.is_known(network, now) { self.most } else { self.most - self.most / RESERVED };
        // A connection that was told to make room counts until it has ended, in a moment: until then there
        // may be a few more connections than `max_sessions`.
        if live.handles.len() >= most as usize && !live.make_room(now) {
            metrics::limit_reached("max_sessions");
            return Err(Refused::TooMany);
        }
        *live.per_network.entry(network).or_insert(0) += 1;
        let handle = Arc::new(Handle {
            id: SessionId::random(),
            address,
            user: Mutex::default(),
            order: AtomicU8::new(0),
            ordered: Notify::new(),
            since: now,
            has_logged_in: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            must_confirm: AtomicBool::new(false),
            revoked: OnceLock::new(),
        });
        live.handles.insert(handle.id, Arc::clone(&handle));
        live.not_logged_in.push_back(Arc::clone(&handle));
        metrics::connection_opened();
        Ok(Place { connections: Arc::clone(self), handle })
    }

    /// The session has logged in: it keeps its place, and its network is known from now on.
    pub fn logged_in(&self, handle: &Handle) {
        handle.has_logged_in.store(true, Ordering::Release);
        self.live().learn(network_of(handle.address), Instant::now());
    }

    /// Tells one connection what to do; `false` if there is none of this id.
    pub fn order(&self, id: SessionId, order: Order) -> bool {
        let handle = self.live().handles.get(&id).cloned();
        handle.as_ref().inspect(|handle| handle.give(order)).is_some()
    }

    /// Ends all sessions of a user. A login that is being decided must be confirmed: the reason may be a change
    /// that it knows already, such as the new password that it was made with.
    pub fn end_user(&self, user: &str) {
        for handle in self.live().handles.values() {
            match &*handle.user() {
                User::LoggedIn(login) if login.user == user => handle.give(Order::End),
                // While its user is locked: `log_in` comes before, or sees it afterwards.
                User::Claimed(name) if **name == *user => handle.must_confirm.store(true, Ordering::Release),
                User::Unknown | User::Claimed(_) | User::LoggedIn(_) => {}
            }
        }
    }

    /// The logins that all sessions began with, and the sessions of each.
    pub fn logins(&self) -> HashMap<PastLogin, Vec<Arc<Handle>>> {
        let mut logins = HashMap::<PastLogin, Vec<Arc<Handle>>>::new();
        for handle in self.live().handles.values() {
            if let User::LoggedIn(login) = &*handle.user() {
                logins.entry((**login).clone()).or_default().push(Arc::clone(handle));
            }
        }
        logins
    }

    /// Admits no further connection.
    pub fn close(&self) {
        self.live().draining = true;
    }

    /// Admits no further connection and tells those that are there what to do.
    pub fn drain(&self, order: Order) {
        self.close();
        for handle in self.live().handles.values() {
            handle.give(order);
        }
    }

    pub fn is_draining(&self) -> bool {
        self.live().draining
    }

    pub fn count(&self) -> usize {
        self.live().handles.len()
    }

    /// Returns when no connection is left.
    pub async fn none_left(&self) {
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

impl Live {
    fn is_known(&self, network: IpAddr, now: Instant) -> bool {
        self.known.get(&network).is_some_and(|login| now.duration_since(*login) < KNOWN_FOR)
    }

    fn learn(&mut self, network: IpAddr, now: Instant) {
        if self.known.len() >= MOST_KNOWN && !self.known.contains_key(&network) {
            self.known.retain(|_, login| now.duration_since(*login) < KNOWN_FOR);
            if self.known.len() >= MOST_KNOWN {
                return;
            }
        }
        self.known.insert(network, now);
    }

    /// Ends the oldest connection that has not logged in for [`LOGIN_PATIENCE`]; `false` if there is none.
    fn make_room(&mut self, now: Instant) -> bool {
        while let Some(oldest) = self.not_logged_in.front() {
            let is_waiting = oldest.is_waiting_for_login();
            if is_waiting && now.duration_since(oldest.since) < LOGIN_PATIENCE {
                return false;
            }
            let Some(oldest) = self.not_logged_in.pop_front() else { return false };
            if is_waiting {
                oldest.give(Order::MakeRoom);
                return true;
            }
        }
        false
    }

    /// Drops the connections at the front of the queue that [`Live::make_room`] would pass over.
    fn tidy(&mut self) {
        while self.not_logged_in.front().is_some_and(|oldest| !oldest.is_waiting_for_login()) {
            self.not_logged_in.pop_front();
        }
        // One silent connection at the front keeps the others there, until `login_timeout` ends it.
        if self.not_logged_in.len() > 2 * self.handles.len() + 64 {
            self.not_logged_in.retain(|handle| handle.is_waiting_for_login());
        }
    }
}

impl Handle {
    fn is_waiting_for_login(&self) -> bool {
        !self.has_logged_in.load(Ordering::Acquire) && !self.has_ended.load(Ordering::Acquire)
    }

    fn give(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::AcqRel);
        self.ordered.notify_one();
    }

    /// The most urgent order given so far.
    pub fn pending(&self) -> Option<Order> {
        match self.order.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Order::Drain),
            2 => Some(Order::MakeRoom),
            3 => Some(Order::End),
            _ => Some(Order::Stop),
        }
    }

    /// Returns when an order was given since the last call. Cancel-safe.
    pub async fn ordered(&self) {
        self.ordered.notified().await;
    }

    /// Notes the name of a login that is being decided. `None`: no user is logged in.
    pub fn set_user(&self, user: Option<&str>) {
        *self.user() = user.map_or(User::Unknown, |name| User::Claimed(name.into()));
    }

    /// Notes that a login was accepted. From now on [`Connections::logins`] has it. Returns whether the user's
    /// sessions were to end while it was being decided.
    pub fn log_in(&self, login: PastLogin) -> bool {
        *self.user() = User::LoggedIn(Box::new(login));
        self.must_confirm.swap(false, Ordering::AcqRel)
    }

    /// Ends the session, if it still is the one that this login began, and was not told so before.
    pub fn revoke(&self, login: &PastLogin, reason: EndReason) -> bool {
        let is_its = matches!(&*self.user(), User::LoggedIn(current) if **current == *login);
        let is_new = is_its && self.revoked.set(reason).is_ok();
        if is_new {
            self.give(Order::End);
        }
        is_new
    }

    /// Why authd would not accept the session's login now, if that is why it has to end.
    pub fn revoked(&self) -> Option<EndReason> {
        self.revoked.get().copied()
    }

    fn user(&self) -> MutexGuard<'_, User> {
        self.user.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    pub fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut live = self.connections.live();
        live.handles.remove(&self.handle.id);
        self.handle.has_ended.store(true, Ordering::Release);
        let network = network_of(self.handle.address);
        if let Some(count) = live.per_network.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                live.per_network.remove(&network);
            }
        }
        live.tidy();
        drop(live);
        metrics::connection_closed();
        self.connections.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn limits_hold_and_places_come_back() {
        let connections = Arc::new(Connections::new(3, 2));
        let [anna, bert] = [1, 2].map(|i| IpAddr::V4(Ipv4Addr::new(192, 0, 2, i)));
        let first = connections.admit(anna).ok().unwrap();
        let _second = connections.admit(anna).ok().unwrap();
        assert_eq!(connections.admit(anna).err(), Some(Refused::TooManyFromAddress));
        let _third = connections.admit(bert).ok().unwrap();
        assert_eq!(connections.admit(bert).err(), Some(Refused::TooMany));
        drop(first);
        assert!(connections.admit(anna).is_ok());
    }

    #[test]
    fn all_addresses_of_an_ipv6_64_network_share_one_limit() {
        let connections = Arc::new(Connections::new(100, 2));
        let admit = |address: &str| connections.admit(address.parse().unwrap());
        let first = admit("2001:db8:1:2::1").ok().unwrap();
        let _second = admit("2001:db8:1:2:3:4:5:6").ok().unwrap();
        assert_eq!(admit("2001:db8:1:2::9").err(), Some(Refused::TooManyFromAddress));
        let _other = admit("2001:db8:1:3::1").ok().unwrap();
        drop(first);
        assert!(admit("2001:db8:1:2::9").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn when_nearly_full_the_oldest_without_a_login_makes_room_for_a_newcomer() {
        let connections = Arc::new(Connections::new(10, 10));
        let stranger = |i: u8| IpAddr::V4(Ipv4Addr::new(198, 51, 100, i));
        let places: Vec<_> = (0..9).map(|i| connections.admit(stranger(i)).ok().unwrap()).collect();
        assert_eq!(
            connections.admit(stranger(9)).err(),
            Some(Refused::TooMany),
            "the last tenth is reserved"
        );
        connections.logged_in(places[0].handle());
        tokio::time::advance(LOGIN_PATIENCE).await;
        let newcomer = connections.admit(stranger(9)).ok().unwrap();
        assert_eq!(places[0].handle().pending(), None, "it has logged in");
        assert_eq!(places[1].handle().pending(), Some(Order::MakeRoom));
        assert_eq!(places[2].handle().pending(), None);
        drop(newcomer);
        drop(places);
        assert!(connections.live().not_logged_in.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_that_logged_in_lately_finds_a_place_in_a_flood() {
        let connections = Arc::new(Connections::new(10, 10));
        let client = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        let first = connections.admit(client).ok().unwrap();
        connections.logged_in(first.handle());
        drop(first);
        let flood: Vec<_> =
            (0..100).filter_map(|i| connections.admit(Ipv4Addr::new(198, 51, 100, i).into()).ok()).collect();
        assert_eq!(flood.len(), 9);
        let _again = connections.admit(client).ok().unwrap();
        tokio::time::advance(KNOWN_FOR).await;
        connections.logged_in(flood[0].handle());
        assert_eq!(connections.admit(client).err(), None, "a silent connection made room");
    }

    #[tokio::test]
    async fn an_order_reaches_its_session_and_the_most_urgent_one_stands() {
        let connections = Arc::new(Connections::new(9, 9));
        let place = connections.admit(Ipv4Addr::LOCALHOST.into()).ok().unwrap();
        place.handle().log_in(login("anna"));
        connections.end_user("bert");
        assert_eq!(place.handle().pending(), None);
        connections.end_user("anna");
        connections.drain(Order::Drain);
        place.handle().ordered().await;
        assert_eq!(place.handle().pending(), Some(Order::End));
        assert_eq!(connections.admit(Ipv4Addr::LOCALHOST.into()).err(), Some(Refused::Draining));
        drop(place);
        connections.none_left().await;
    }

    fn login(user: &str) -> PastLogin {
        PastLogin { user: user.to_owned(), version: None, address: Ipv4Addr::LOCALHOST.into() }
    }

    #[test]
    fn a_login_during_which_the_users_sessions_end_must_be_confirmed() {
        let connections = Arc::new(Connections::new(9, 9));
        let place = connections.admit(Ipv4Addr::LOCALHOST.into()).ok().unwrap();
        place.handle().set_user(Some("anna"));
        assert!(connections.logins().is_empty());
        connections.end_user("bert");
        connections.end_user("anna");
        assert_eq!(place.handle().pending(), None);
        assert!(place.handle().log_in(login("anna")));
        // Once is enough: the next login on this connection is another.
        assert!(!place.handle().log_in(login("anna")));
    }

    #[test]
    fn only_the_session_of_the_login_is_revoked_and_once() {
        let connections = Arc::new(Connections::new(9, 9));
        let place = connections.admit(Ipv4Addr::LOCALHOST.into()).ok().unwrap();
        let login = |version: &str| PastLogin {
            user: "anna".to_owned(),
            version: Some(version.to_owned()),
            address: Ipv4Addr::LOCALHOST.into(),
        };
        place.handle().log_in(login("1"));
        let found = connections.logins();
        assert_eq!(found[&login("1")].len(), 1);
        // REIN, and another login.
        place.handle().log_in(login("2"));
        assert!(!place.handle().revoke(&login("1"), EndReason::Disabled));
        assert_eq!(place.handle().pending(), None);
        assert!(place.handle().revoke(&login("2"), EndReason::Disabled));
        assert!(!place.handle().revoke(&login("2"), EndReason::Removed));
        assert_eq!(place.handle().revoked(), Some(EndReason::Disabled));
        assert_eq!(place.handle().pending(), Some(Order::End));
    }
}
