//! DELE, RNFR, RNTO (RFC 959 section 4.1.3), SIZE, MDTM (RFC 3659), MFMT, AVBL, SITE CHMOD.

use common::{clock::rfc3339, policy::Permission, registry::LeasePath};

use super::leases::LeaseTaker;
use crate::{
    jail::FileError,
    listing::EntryKind,
    protocol::{Code, Reply, command::Modified, mode::ModeChange, timestamp},
    session::LoggedIn,
    virtual_path::VirtualPath,
};

/// DELE: removes a file, and the partial file of its unfinished upload.
pub(super) async fn dele(session: &LoggedIn, argument: &[u8]) -> Result<Reply, Reply> {
    let path = session.path(argument)?;
    session.allow(Permission::Delete, &path)?;
    let user = session.account.user.clone();
    let (removed, lease_taker, events) = (path.clone(), LeaseTaker::of(session), session.events());
    let removal = session.remove_in_home(&path, move |jail, changes| {
        let lease = lease_taker.for_removal(vec![LeasePath::file(&jail.name_key(&removed)?)])?;
        let _lock = jail.lock_for_change(&removed)?;
        let event = events.begin_removal(jail, &removed, &lease)?;
        let partial = jail.remove_partial(&removed, &user);
        if let Ok(Some(freed)) = partial {
            changes.remove(freed);
        }
        match jail.remove_file(&removed) {
            Ok(freed) => changes.remove(freed),
            Err(FileError::NotFound) if partial?.is_some() => {}
            Err(error) => return Err(error),
        }
        event.end(jail.sync_parents(&[&removed]))
    });
    removal.await?;
    Ok(Reply::new(Code::DONE, "File deleted"))
}

/// RNFR: 350 if the path exists. A user without the permission to list gets 350 for every name, so that only
/// a successful rename reveals that the path existed.
pub(super) async fn rnfr(session: &mut LoggedIn, argument: &[u8]) -> Result<Reply, Reply> {
    let path = session.path(argument)?;
    session.allow(Permission::Rename, &path)?;
    if session.access.at(&path).has(Permission::List) {
        let named = path.clone();
        session.in_home(move |jail| jail.entry(&named)).await?;
    }
    session.rename_from = Some(path);
    Ok(Reply::new(Code::PENDING, "Ready for RNTO"))
}

/// RNTO. Only users with the permission to overwrite may replace an existing file.
pub(super) async fn rnto(session: &mut LoggedIn, argument: &[u8]) -> Result<Reply, Reply> {
    let from = session.rename_from.take();
    let to = session.path(argument)?;
    session.allow(Permission::Rename, &to)?;
    let from = from.ok_or_else(|| Reply::new(Code::BAD_SEQUENCE, "Send RNFR before RNTO"))?;
    allow_rename(session, &from, &to).await?;
    session.allow_name(&to)?;
    let replace = session.access.at(&to).has(Permission::Overwrite);
    let (target, lease_taker, events) = (to.clone(), LeaseTaker::of(session), session.events());
    let renaming = session.remove_in_home(&target, move |jail, changes| {
        let lease = lease_taker.for_rename(jail, &[&from, &to])?;
        let _locks = jail.lock_all_for_change(&[&from, &to])?;
        let event = events.begin_rename(jail, &from, &to, &lease)?;
        changes.remove(jail.rename(&from, &to, replace)?);
        event.end(jail.sync_parents(&[&from, &to]))
    });
    renaming.await?;
    Ok(Reply::new(Code::DONE, "Rename successful"))
}

/// Checks the permissions for a rename; a directory needs more than a file. A directory that replaces the
/// file between this check and the rename is harmless: only this user can have put it there, by permitted
/// renames.
async fn allow_rename(session: &LoggedIn, from: &VirtualPath, to: &VirtualPath) -> Result<(), Reply> {
    let may = |is_directory| session.access.may_rename(from, to, is_directory);
    let is_allowed = match (may(false), may(true)) {
        (true, false) => {
            let named = from.clone();
            session.in_home(move |jail| jail.entry(&named)).await?.kind != EntryKind::Directory
        }
        (false, true) => {
            let named = from.clone();
            session.in_home(move |jail| jail.entry(&named)).await?.kind == EntryKind::Directory
        }
        (both, _) => both,
    };
    if is_allowed { Ok(()) } else { Err(Reply::permission_denied()) }
}

/// SIZE: the number of bytes that RETR would send (RFC 3659 section 4). Refused in TYPE A: the size would be
/// known only after reading the whole file. For an unfinished atomic upload the size so far, so that the
/// client knows where to resume.
pub(super) async fn size(session: &LoggedIn, argument: &[u8]) -> Result<Reply, Reply> {
    let path = session.path(argument)?;
    session.allow(Permission::List, &path)?;
    if session.representation.converts() {
        return Err(Reply::new(Code::FILE_UNAVAILABLE, "SIZE is known in TYPE I only"));
    }
    let user = session.account.user.clone();
    let size = session
        .in_home(move |jail| match jail.open_read(&path) {
            Ok(file) => Ok(file.size),
            Err(error) => jail.partial_size(&path, &user)?.ok_or(error),
        })
        .await?;
    Ok(Reply::new(Code::FILE_STATUS, size.to_string()))
}

/// MDTM: the time of last change (RFC 3659 section 3).
pub(super) async fn mdtm(session: &LoggedIn, argument: &[u8]) -> Result<Reply, Reply> {
    let path = session.path(argument)?;
    session.allow(Permission::List, &path)?;
    let modified = session.in_home(move |jail| jail.open_read(&path).map(|file| file.modified)).await?;
    Ok(Reply::new(Code::FILE_STATUS, time_text(modified)))
}

/// MFMT, MDTM with a time, SITE UTIME: sets the time of last change.
pub(super) async fn mfmt(session: &mut LoggedIn, modified: Modified) -> Result<Reply, Reply> {
    let path = session.path(&modified.path)?;
    session.allow(Permission::Attributes, &path)?;
    let (time, lease_taker) = (modified.time, LeaseTaker::of(session));
    let stamping = session.in_home(move |jail| {
        let _lease = lease_taker.for_removal(vec![LeasePath::file(&jail.canonical_key(&path)?)])?;
        let _lock = jail.lock_resolved_for_change(&path)?;
        jail.set_modified(&path, time)
    });
    stamping.await?;
    session.audited.value = u64::try_from(time).ok().map(rfc3339);
    let text = [b"Modify=", &time_text(time)[..], b"; ", &modified.path].concat();
    Ok(Reply::new(Code::FILE_STATUS, text))
}

/// AVBL: the free space of the path's file system in bytes, at most the rest of the quota.
pub(super) async fn avbl(session: &LoggedIn, argument: Option<&[u8]>) -> Result<Reply, Reply> {
    let path = session.path(argument.unwrap_or_default())?;
    session.allow(Permission::List, &path)?;
    let quota = session.quota_of(&path).cloned();
    let mut free = session.in_home(move |jail| jail.free_space(&path)).await?;
    if let Some(quota) = quota {
        free = free.min(quota.bytes_left().await?.unwrap_or(free));
    }
    Ok(Reply::new(Code::FILE_STATUS, free.to_string()))
}

/// SITE CHMOD, with an octal or symbolic mode.
pub(super) async fn chmod(session: &mut LoggedIn, mode: ModeChange, argument: &[u8]) -> Result<Reply, Reply> {
    let path = session.path(argument)?;
    session.allow(Permission::Attributes, &path)?;
    let change = move |before, is_directory| mode.apply(before, is_directory);
    let mode = session.in_home(move |jail| jail.change_mode(&path, change)).await?;
    session.audited.value = Some(format!("{mode:04o}"));
    Ok(Reply::new(Code::OK, "SITE CHMOD command successful"))
}

/// A time in the format of RFC 3659 section 2.3.
fn time_text(seconds: i64) -> Vec<u8> {
    let mut text = Vec::new();
    timestamp::format(seconds, &mut text);
    text
}
