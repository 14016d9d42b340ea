//! Work of which each user may have only so much at once on this node.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Turns of users. A user's work beyond the limit waits.
#[derive(Debug)]
pub struct Turns {
    /// How many a user has at once.
    each: usize,
    users: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Turns {
    pub fn new(each: u32) -> Self {
        Self { each: each as usize, users: Mutex::default() }
    }

    /// A turn of `user` if one is free. The turn ends when it is dropped.
    pub fn try_take(&self, user: &str) -> Option<OwnedSemaphorePermit> {
        self.of(user).try_acquire_owned().ok()
    }

    /// A turn of `user`, in the order of the calls. The turn ends when it is dropped. Cancel-safe.
    pub async fn take(&self, user: &str) -> OwnedSemaphorePermit {
        // The semaphore is never closed.
        self.of(user).acquire_owned().await.expect("never closed")
    }

    fn of(&self, user: &str) -> Arc<Semaphore> {
        let mut users = self.users();
        if let Some(turns) = users.get(user).and_then(Weak::upgrade) {
            return turns;
        }
        // Users without a turn are forgotten when another one begins.
        users.retain(|_, turns| turns.strong_count() > 0);
        let turns = Arc::new(Semaphore::new(self.each));
        users.insert(user.to_owned(), Arc::downgrade(&turns));
        turns
    }

    fn users(&self) -> MutexGuard<'_, HashMap<String, Weak<Semaphore>>> {
        // Nothing panics while it holds the lock.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_user_has_turns_of_its_own_and_users_without_one_are_forgotten() {
        let turns = Turns::new(1);
        let first = turns.take("ann").await;
        assert!(turns.try_take("ann").is_none());
        let other = turns.try_take("bert");
        assert!(other.is_some());
        drop(first);
        assert!(turns.try_take("ann").is_some());
        drop(other);
        drop(turns.take("carol").await);
        assert_eq!(turns.users().len(), 1);
    }
}
