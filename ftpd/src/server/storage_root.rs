//! The check of the storage root when the node starts.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::Path,
    time::Duration,
};

use tokio::time::timeout;

use super::RunError;
use crate::{
    config::{Config, SelfTestMode},
    jail::{LockMode, StorageSelfTest, StorageSeverity, is_no_right},
};

/// Time limit of the self-test. A storage that hangs makes the node unready; the node still starts.
const SELF_TEST_TIME: Duration = Duration::from_secs(10);

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
        Ok(Ok(())) => self_test(config).await,
        Ok(Err((root, error))) => Err(RunError::Storage(root.display().to_string(), error)),
        // The check panicked.
        Err(error) => Err(RunError::Storage(config.storage.root.display().to_string(), error.into())),
    }
}

/// Tries in the root what uploads rely on, and logs the result. Refuses to start where uploads in atomic mode
/// would not keep their promise, unless `storage_self_test` says otherwise.
async fn self_test(config: &Config) -> Result<(), RunError> {
    let mode = config.storage.self_test;
    if mode == SelfTestMode::Off {
        return Ok(());
    }
    let (root, locks) = (config.storage.root.clone(), config.storage.locks);
    let must_sync = config.storage.sync_uploads;
    let shown = root.display().to_string();
    let running = tokio::task::spawn_blocking(move || StorageSelfTest::run(&root, locks, must_sync));
    let test = match timeout(SELF_TEST_TIME, running).await {
        Ok(Ok(Ok(test))) => test,
        Ok(Ok(Err(error))) if is_no_right(&error) => {
            log::info!(
                root = shown.as_str();
                "the storage is not tested: the node may not write in its root"
            );
            return Ok(());
        }
        Ok(Ok(Err(error))) => {
            log::warn!(root = shown.as_str(), error:%; "the storage is not tested");
            return Ok(());
        }
        Ok(Err(error)) => {
            log::warn!(root = shown.as_str(), error:%; "the test of the storage panicked");
            return Ok(());
        }
        Err(_) => {
            log::warn!(root = shown.as_str(); "the storage has not finished its test in 10 s");
            return Ok(());
        }
    };
    let file_system = test.file_system.as_str();
    for severity in [StorageSeverity::Weak, StorageSeverity::Unknown] {
        if let Some(text) = test.texts(severity) {
            log::warn!(root = shown.as_str(), file_system; "the test of the storage: {text}");
        }
    }
    match (test.texts(StorageSeverity::BreaksAtomicMode), mode) {
        (Some(reason), SelfTestMode::Require) => {
            Err(RunError::StorageSelfTest { root: shown, file_system: test.file_system, reason })
        }
        (Some(reason), _) => {
            log::error!(
                root = shown.as_str(), file_system, setting = "storage_self_test";
                "the storage does not keep what uploads in atomic mode promise: {reason}"
            );
            Ok(())
        }
        (None, _) => {
            log::info!(
                root = shown.as_str(), file_system;
                "the storage passed its test: O_EXCL, rename over an open file, fsync"
            );
            Ok(())
        }
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
