//! PWD, CWD, CDUP, MKD, RMD (RFC 959 sections 4.1.1 and 4.1.3), RMDA.

use std::sync::Arc;

use common::{
    policy::Permission,
    registry::{LeasePath, Usage},
};

use super::{activities::run_in_background, leases::LeaseTaker};
use crate::{
    jail::{Changes, FileError},
    protocol::{Code, Reply},
    session::{LoggedIn, Outcome},
    virtual_path::VirtualPath,
    work::{RuntimeBridge, activity::ActivityHandle},
};

/// PWD: 257 with the path. Quotes in it are doubled (RFC 959 appendix II).
pub(super) fn pwd(session: &LoggedIn) -> Reply {
    Reply::quoted_path(session.cwd.as_bytes(), "is current directory")
}

/// CWD. Without a path, changes to the home. `~` also means the home, unless a directory has that name, as in
/// ProFTPD and Pure-FTPd.
pub(super) async fn cwd(session: &mut LoggedIn, argument: Option<&[u8]>) -> Result<Reply, Reply> {
    let Some(argument) = argument else { return enter(session, VirtualPath::root()).await };
    let path = session.path(argument)?;
    let refused = match enter(session, path).await {
        Err(refused) if refused.code() == Code::FILE_UNAVAILABLE => refused,
        entered => return entered,
    };
    match argument {
        [b'~'] | [b'~', b'/', ..] => {
            let below_home = session.path(&[b"/", &argument[1..]].concat())?;
            enter(session, below_home).await
        }
        _ => Err(refused),
    }
}

/// CDUP: changes to the parent directory.
pub(super) async fn cdup(session: &mut LoggedIn) -> Result<Reply, Reply> {
    let path = session.cwd.parent();
    enter(session, path).await
}

/// Changes to `path`, if the user may enter it.
async fn enter(session: &mut LoggedIn, path: VirtualPath) -> Result<Reply, Reply> {
    if !session.access.is_enterable(&path) {
        return Err(Reply::permission_denied());
    }
    let checked = path.clone();
    let may_list = session.access.at(&path).has(Permission::List);
    session
        .in_home(move |jail| match jail.check_directory(&checked) {
            // Users who may not list must not learn that a file has this name.
            Err(FileError::NotADirectory) if !may_list => Err(FileError::NotFound),
            checked => checked,
        })
        .await?;
    session.cwd = path;
    Ok(Reply::new(Code::DONE, "Directory successfully changed"))
}

/// MKD: 257 with the absolute path, which the client can use in CWD. The quota counts the directory as a
/// file.
pub(super) async fn mkd(session: &LoggedIn, argument: &[u8]) -> Result<Reply, Reply> {
    let path = session.path(argument)?;
    session.allow(Permission::Mkdir, &path)?;
    let reservation = match session.quota_of(&path) {
        Some(quota) => Some(quota.admit_whole(Usage { bytes: 0, files: 1 }).await?),
        None => None,
    };
    let directory = path.clone();
    let making = session.in_home(move |jail| {
        let changes = Changes::default();
        let made = jail.create_directory(&directory);
        if made.is_ok() {
            changes.create();
        }
        if let Some(reservation) = reservation {
            reservation.follow(changes);
            reservation.settle();
        }
        made.and_then(|()| jail.sync_parents(&[&directory]))
    });
    making.await?;
    Ok(Reply::quoted_path(path.as_bytes(), "created"))
}

/// RMD: removes an empty directory.
pub(super) async fn rmd(session: &LoggedIn, argument: &[u8]) -> Result<Reply, Reply> {
    let path = session.path(argument)?;
    session.allow(Permission::Rmdir, &path)?;
    let (removed, lease_taker, events) = (path.clone(), LeaseTaker::of(session), session.events());
    let removal = session.remove_in_home(&path, move |jail, changes| {
        let lease = lease_taker.for_removal(vec![LeasePath::tree(&jail.name_key(&removed)?)])?;
        let event = events.begin_removal(jail, &removed, &lease)?;
        jail.remove_directory(&removed, changes)?;
        event.end(jail.sync_parents(&[&removed]))
    });
    removal.await?;
    Ok(Reply::new(Code::DONE, "Directory removed"))
}

/// RMDA: removes a directory with everything below it. Refused if an access rule might forbid the removal of
/// any part. ABOR stops it; removed files stay removed. While it runs, no session can write below the
/// directory.
pub(super) fn rmda(session: &LoggedIn, verb: &'static str, argument: &[u8]) -> Result<Outcome, Reply> {
    let path = session.path(argument)?;
    if !session.access.holds_in_tree(&path, &[Permission::Rmdir, Permission::Delete]) {
        return Err(Reply::permission_denied());
    }
    let jail = Arc::clone(&session.jail);
    let handle = ActivityHandle::new(verb);
    let progress = Arc::clone(&handle.progress);
    let (quota, bridge) = (session.quota_of(&path).cloned(), RuntimeBridge::to_current());
    let (lease_taker, events) = (LeaseTaker::of(session), session.events());
    Ok(run_in_background(session, handle, move || {
        let changes = Changes::default();
        let lease = jail.name_key(&path).and_then(|key| lease_taker.for_removal(vec![LeasePath::tree(&key)]));
        let removed = lease.and_then(|lease| {
            let event = events.begin_removal(&jail, &path, &lease)?;
            jail.remove_tree(&path, &progress, &changes)?;
            event.end(jail.sync_parents(&[&path]))
        });
        if let Some(quota) = quota {
            bridge.wait(quota.report(changes.so_far()));
        }
        match removed {
            Ok(()) => Reply::new(Code::DONE, "Directory and its contents removed"),
            Err(error) => error.refusal(),
        }
    }))
}
