//! Locks within this process: only one operation at a time removes, replaces or truncates a file.
//!
//! A quota is credited only with bytes that an operation really freed. Without these locks two sessions
//! could look at the same file, both remove or replace it, and both credit its bytes. Therefore an
//! operation that removes or truncates a file locks its inode first and then checks the name again. The
//! write lease on the path keeps out sessions on other nodes.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use common::sync;

/// Device and inode number: see [`super::handle::identity`].
pub(super) type FileIdentity = (u64, u64);

/// Locked inodes of all jails.
static LOCKED: LockedInodes = LockedInodes { files: Mutex::new(None), released: Condvar::new() };

struct LockedInodes {
    /// `None` before the first lock, because `HashSet::new` is not a `const fn`.
    files: Mutex<Option<HashSet<FileIdentity>>>,
    released: Condvar,
}

impl LockedInodes {
    fn files(&self) -> MutexGuard<'_, Option<HashSet<FileIdentity>>> {
        sync::lock(&self.files)
    }
}

/// Locks on one or two files. Dropping it releases them.
#[must_use]
pub(super) struct InodeLock(Vec<FileIdentity>);

impl InodeLock {
    /// Waits until no other operation holds any of the files, then locks all of them in one step, so
    /// that two operations cannot deadlock. Blocks only for operations on the same files.
    pub(super) fn take(files: impl IntoIterator<Item = FileIdentity>) -> Self {
        let mut wanted: Vec<FileIdentity> = files.into_iter().collect();
        wanted.sort_unstable();
        wanted.dedup();
        debug_assert!(wanted.len() <= 2, "an operation locks at most two files: {wanted:?}");
        let mut locked = LOCKED.files();
        while locked.as_ref().is_some_and(|locked| wanted.iter().any(|file| locked.contains(file))) {
            locked = LOCKED.released.wait(locked).unwrap_or_else(PoisonError::into_inner);
        }
        locked.get_or_insert_default().extend(wanted.iter().copied());
        Self(wanted)
    }
}

impl Drop for InodeLock {
    fn drop(&mut self) {
        if let Some(locked) = LOCKED.files().as_mut() {
            for file in &self.0 {
                let was_locked = locked.remove(file);
                debug_assert!(was_locked, "only its owner unlocks {file:?}");
            }
        }
        LOCKED.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn operations_on_the_same_files_run_one_at_a_time_in_any_lock_order() {
        // No file system has this device number.
        let file = |inode| (u64::MAX, inode);
        let (inside, most) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for number in 0..8 {
                let (inside, most) = (&inside, &most);
                scope.spawn(move || {
                    for _ in 0..500 {
                        let pair = if number % 2 == 0 { [file(1), file(2)] } else { [file(2), file(1)] };
                        let _lock = InodeLock::take(pair);
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(most.into_inner(), 1);
        // An operation that names a file twice does not wait for itself.
        drop(InodeLock::take([file(1), file(1)]));
    }
}
