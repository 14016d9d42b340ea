//! The control connections of this node: how many there may be, and how to reach each of them.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use common::{
    auth_api::{EndReason, PastLogin},
    session::SessionId,
};
use tokio::sync::Notify;

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
    per_address: HashMap<IpAddr, u32>,
    draining: bool,
}

/// One control connection, as seen from elsewhere in the node.
pub struct Handle {
    pub id: SessionId,
    pub address: IpAddr,
    user: Mutex<User>,
    order: AtomicU8,
    ordered: Notify,
    /// Why the session has to end, if authd says so.
    revoked: OnceLock<EndReason>,
}

/// Whose connection it is.
#[derive(Default)]
enum User {
    #[default]
    Unknown,
    /// Somebody logs in by this name, which authd may write in another way.
    Claimed(Box<str>),
    LoggedIn(Box<PastLogin>),
}

/// What a connection is told to do. A later one is only heard if it is more urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Order {
    /// End when nothing runs.
    Drain = 1,
    /// End now: an administrator wants it.
    End = 2,
    /// End now: the node goes down.
    Stop = 3,
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
        if live.handles.len() >= self.most as usize {
            metrics::limit_reached("max_sessions");
            return Err(Refused::TooMany);
        }
        let from_address = live.per_address.entry(address).or_insert(0);
        if *from_address >= self.most_per_address {
            metrics::limit_reached("max_sessions_per_address");
            return Err(Refused::TooManyFromAddress);
        }
        *from_address += 1;
        let handle = Arc::new(Handle {
            id: SessionId::random(),
            address,
            user: Mutex::default(),
            order: AtomicU8::new(0),
            ordered: Notify::new(),
            revoked: OnceLock::new(),
        });
        live.handles.insert(handle.id, Arc::clone(&handle));
        metrics::connection_opened();
        Ok(Place { connections: Arc::clone(self), handle })
    }

    /// Tells one connection what to do; `false` if there is none of this id.
    pub fn order(&self, id: SessionId, order: Order) -> bool {
        let handle = self.live().handles.get(&id).cloned();
        handle.as_ref().inspect(|handle| handle.give(order)).is_some()
    }

    /// Tells all sessions of a user what to do, and the connections on which the user is just logging in.
    pub fn order_user(&self, user: &str, order: Order) {
        for handle in self.live().handles.values() {
            let is_theirs = match &*handle.user() {
                User::Unknown => false,
                User::Claimed(name) => **name == *user,
                User::LoggedIn(login) => login.user == user,
            };
            if is_theirs {
                handle.give(order);
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

impl Handle {
    fn give(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::AcqRel);
        self.ordered.notify_one();
    }

    /// The most urgent order given so far.
    pub fn pending(&self) -> Option<Order> {
        match self.order.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Order::Drain),
            2 => Some(Order::End),
            _ => Some(Order::Stop),
        }
    }

    /// Returns when an order was given since the last call. Cancel-safe.
    pub async fn ordered(&self) {
        self.ordered.notified().await;
    }

    /// Notes who logs in, or that nobody is logged in.
    pub fn set_user(&self, user: Option<&str>) {
        *self.user() = user.map_or(User::Unknown, |name| User::Claimed(name.into()));
    }

    /// Notes that a login was accepted. From now on [`Connections::logins`] has it.
    pub fn log_in(&self, login: PastLogin) {
        *self.user() = User::LoggedIn(Box::new(login));
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
        if let Some(count) = live.per_address.get_mut(&self.handle.address) {
            *count -= 1;
            if *count == 0 {
                live.per_address.remove(&self.handle.address);
            }
        }
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

    #[tokio::test]
    async fn an_order_reaches_its_session_and_the_most_urgent_one_stands() {
        let connections = Arc::new(Connections::new(9, 9));
        let place = connections.admit(Ipv4Addr::LOCALHOST.into()).ok().unwrap();
        place.handle().set_user(Some("anna"));
        connections.order_user("bert", Order::End);
        assert_eq!(place.handle().pending(), None);
        connections.order_user("anna", Order::End);
        connections.drain(Order::Drain);
        place.handle().ordered().await;
        assert_eq!(place.handle().pending(), Some(Order::End));
        assert_eq!(connections.admit(Ipv4Addr::LOCALHOST.into()).err(), Some(Refused::Draining));
        drop(place);
        connections.none_left().await;
    }

    #[test]
    fn an_order_reaches_a_user_who_is_logging_in() {
        let connections = Arc::new(Connections::new(9, 9));
        let place = connections.admit(Ipv4Addr::LOCALHOST.into()).ok().unwrap();
        place.handle().set_user(Some("anna"));
        assert!(connections.logins().is_empty());
        connections.order_user("anna", Order::End);
        let login = PastLogin { user: "anna".to_owned(), version: None, address: Ipv4Addr::LOCALHOST.into() };
        place.handle().log_in(login);
        assert_eq!(place.handle().pending(), Some(Order::End));
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
