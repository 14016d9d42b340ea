//! Within this process, one operation at a time that removes, replaces or cuts a file.
//!
//! A quota may get back only what an operation really freed. Between the look at a name and the
//! operation on it, another session could remove or replace the file, and both would give back the same
//! bytes. So an operation that removes or cuts a file locks its inode first and then looks again. Sessions on
//! other nodes are kept out by the write lease of the name.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Device and inode: see [`super::handle::identity`].
pub(super) type Identity = (u64, u64);

/// Locked files of all jails.
static LOCKED: LockedFiles = LockedFiles { files: Mutex::new(None), released: Condvar::new() };

struct LockedFiles {
    /// `None` before the first lock, because a `HashSet` cannot be made in a constant.
    files: Mutex<Option<HashSet<Identity>>>,
    released: Condvar,
}

impl LockedFiles {
    fn files(&self) -> MutexGuard<'_, Option<HashSet<Identity>>> {
        // Nothing panics while it holds the lock.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Locks on one or two files; they end when it is dropped.
#[must_use]
pub(super) struct FileLock(Vec<Identity>);

impl FileLock {
    /// Waits until no other operation has one of the files, then takes all of them in one step, so that
    /// two operations cannot wait for each other. Blocks no longer than those operations take; they are
    /// on the same file.
    pub fn take(files: impl IntoIterator<Item = Identity>) -> Self {
        let mut wanted: Vec<Identity> = files.into_iter().collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut locked = LOCKED.files();
        while locked.as_ref().is_some_and(|locked| wanted.iter().any(|file| locked.contains(file))) {
            locked = LOCKED.released.wait(locked).unwrap_or_else(PoisonError::into_inner);
        }
        locked.get_or_insert_default().extend(wanted.iter().copied());
        Self(wanted)
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if let Some(locked) = LOCKED.files().as_mut() {
            for file in &self.0 {
                locked.remove(file);
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
    fn two_operations_on_a_file_run_one_after_the_other_whatever_the_order_they_name_files_in() {
        // No file system has this device.
        let file = |inode| (u64::MAX, inode);
        let (inside, most) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for number in 0..8 {
                let (inside, most) = (&inside, &most);
                scope.spawn(move || {
                    for _ in 0..500 {
                        let pair = if number % 2 == 0 { [file(1), file(2)] } else { [file(2), file(1)] };
                        let _lock = FileLock::take(pair);
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(most.into_inner(), 1);
        // One that names a file twice does not wait for itself.
        drop(FileLock::take([file(1), file(1)]));
    }
}
