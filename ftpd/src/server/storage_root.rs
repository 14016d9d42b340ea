//! The check of the storage root when the node starts.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::Path,
};

use super::RunError;
use crate::{config::Config, jail::LockMode};

/// Checks that the storage root can be used, and logs how far its file locks reach.
pub(super) async fn check(config: &Config) -> Result<(), RunError> {
    let (root, create) = (config.storage.root.clone(), config.storage.create_root);
    let locks = config.redis.is_some().then_some(config.storage.locks);
    let opened = tokio::task::spawn_blocking(move || {
        open(&root, create).map_err(|error| (root.clone(), error))?;
        if let Some(locks) = locks {
            log_lock_reach(locks, &root);
        }
        Ok(())
    });
    match opened.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err((root, error))) => Err(RunError::Storage(root.display().to_string(), error)),
        // The check panicked.
        Err(error) => Err(RunError::Storage(config.storage.root.display().to_string(), error.into())),
    }
}

/// Checks that the root is a directory. With `create` a missing root is created; missing directories above
/// it are not, because they more likely mean a mistyped path.
fn open(root: &Path, create: bool) -> io::Result<()> {
    // If it cannot be created, `read_dir` returns the reason.
    if create && DirBuilder::new().mode(0o755).create(root).is_ok() {
        log::info!(root:% = root.display(); "created the missing storage root");
    }
    fs::read_dir(root).map(drop)
}

/// Logs whether a file lock of this node excludes other nodes.
fn log_lock_reach(locks: LockMode, root: &Path) {
    match locks.check_cross_nodes(root) {
        Ok(why) => {
            log::info!(root:% = root.display(); "file locks hold on all nodes: {why}")
        }
        Err(why) => log::warn!(
            root:% = root.display(), setting = "storage_locks";
            "file locks do not keep out other nodes, so that uploads depend on Redis: {why}"
        ),
    }
}
