//! Turns: they limit how many tasks of one kind each user runs at the same time on this node.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, Weak},
};

use common::sync::lock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The turns of all users. Tasks beyond a user's limit wait.
#[derive(Debug)]
pub struct UserTurns {
    /// The number of turns of each user.
    each: usize,
    users: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl UserTurns {
    pub fn new(each: u32) -> Self {
        Self { each: each as usize, users: Mutex::default() }
    }

    /// Takes a turn of `user` if one is free. Dropping it ends the turn.
    pub fn try_take(&self, user: &str) -> Option<OwnedSemaphorePermit> {
        self.of(user).try_acquire_owned().ok()
    }

    /// Waits for a turn of `user`, in the order of the calls. Dropping it ends the turn. Cancel-safe.
    pub async fn take(&self, user: &str) -> OwnedSemaphorePermit {
        // The semaphore is never closed.
        self.of(user).acquire_owned().await.expect("never closed")
    }

    fn of(&self, user: &str) -> Arc<Semaphore> {
        let mut users = self.users();
        if let Some(turns) = users.get(user).and_then(Weak::upgrade) {
            return turns;
        }
        // Remove users without a turn.
        users.retain(|_, turns| turns.strong_count() > 0);
        let turns = Arc::new(Semaphore::new(self.each));
        users.insert(user.to_owned(), Arc::downgrade(&turns));
        turns
    }

    fn users(&self) -> MutexGuard<'_, HashMap<String, Weak<Semaphore>>> {
        lock(&self.users)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_user_has_its_own_turns_and_users_without_a_turn_are_forgotten() {
        let turns = UserTurns::new(1);
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
