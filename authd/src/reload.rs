//! Reads the users file again after SIGHUP and when it changes.

use std::{sync::Arc, time::Duration};

use tokio::task::spawn_blocking;

use crate::{accounts::declared::ReloadedUsers, revocation::revoke_logins, service::Service};

/// Reads the administrators' file and the users file again, and opens the audit log again, after SIGHUP.
pub(crate) async fn reload_all(service: Arc<Service>) {
    service.audit.reopen();
    let reading = Arc::clone(&service);
    // A panic ends only this attempt; the process and later attempts go on.
    match spawn_blocking(move || reading.tokens.administrators().reload()).await {
        Ok(Ok(Some(administrators))) => log::info!(administrators; "administrators_file loaded"),
        Ok(Ok(None)) | Err(_) => {}
        Ok(Err(error)) => log::error!(
            error:%; "administrators_file is invalid; the previous administrators remain in effect"
        ),
    }
    // Their administrators may have gone.
    service.feed.end_streams();
    reload(service).await;
}

/// Reads the users file again and clears the password cache. Revokes the logins of users who were removed or
/// disabled, or have another password or other certificates. Without a users file it does nothing.
pub(crate) async fn reload(service: Arc<Service>) {
    let Some(path) = service.accounts.declared.path() else { return };
    let file = path.display().to_string();
    let reading = Arc::clone(&service);
    // A panic ends only this attempt; the process and later attempts go on.
    let Ok(result) = spawn_blocking(move || reading.accounts.declared.reload()).await else { return };
    match result {
        Ok(ReloadedUsers { users, revoked }) => {
            service.cache.clear();
            service.learn_hash_costs().await;
            log::info!(file, users; "users file loaded");
            service.revision.advance();
            for user in revoked {
                log::info!(user:%; "ending the sessions of a user who was changed in the users file");
                revoke_logins(&service, &user).await;
            }
        }
        Err(error) => log::error!(error:%; "the users file is invalid; the previous users remain in effect"),
    }
}

/// Reads the users file again whenever it changes. Never returns if there is a users file.
///
/// The file is polled rather than watched: polling works on NFS, through symbolic links and with editors
/// that replace files. A changed file is read when two successive polls see the same state, because a
/// partly written file could lack users, and their sessions would end.
pub(crate) async fn watch(service: Arc<Service>, poll_interval: Duration) {
    if service.accounts.declared.path().is_none() {
        return;
    }
    let mut previous = None;
    loop {
        tokio::time::sleep(poll_interval).await;
        let polling = Arc::clone(&service);
        // A panic ends only this poll.
        let changed = spawn_blocking(move || polling.accounts.declared.changed()).await.unwrap_or_default();
        if changed.is_some() && changed == previous {
            reload(Arc::clone(&service)).await;
        }
        previous = changed;
    }
}
