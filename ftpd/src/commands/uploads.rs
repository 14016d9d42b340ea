//! STOR, STOU, APPE and ALLO (RFC 959 section 4.1.3): uploads.
//!
//! A command checks permissions, then [`start_upload`] takes the write lease, reserves quota, opens the file
//! and starts the transfer. [`receive`] is the part that runs on a worker; [`evidence`] decides whether the
//! upload is complete.

mod evidence;
mod receive;

use std::sync::Arc;

use common::{
    auth_api::UploadMode,
    policy::Permission,
    registry::{BandwidthDirection, WriteLease},
};

use self::receive::{OpenUpload, UploadTerms, lease_guard};
use super::{
    activities::{start_transfer, take_port},
    transfers::take_offset,
};
use crate::{
    config::UploadDigest,
    events::EventKind,
    jail::{FileError, RivalPolicy, UploadPlacement, WriteMode},
    limits::quota::{HomeQuota, NewFile, QuotaReservation},
    metrics,
    protocol::{Code, Reply},
    session::{LoggedIn, Outcome},
    transfer::{Transfer, TransferKind, TransferWork},
    virtual_path::VirtualPath,
    work::{OffRuntime, RuntimeBridge},
};

/// The start of the opening reply, before the argument of the command.
const OPENING: &str = "Opening data connection for ";

/// The number of random names that STOU tries.
const UNIQUE_NAMES: u32 = 16;

/// ALLO: refused if the storage or the quota has no room. The announced size is evidence of a complete
/// upload: see [`evidence::Evidence::check`].
pub(super) async fn allo(session: &mut LoggedIn, bytes: u64) -> Result<Reply, Reply> {
    // The path of the upload is not known yet.
    if !session.access.holds_somewhere(&[Permission::Upload, Permission::Append]) {
        return Err(Reply::permission_denied());
    }
    let cwd = session.cwd.clone();
    let free = session.in_home(move |jail| jail.free_space(&cwd)).await?;
    if bytes > free {
        return Err(Reply::new(Code::NO_SPACE, "Insufficient storage space"));
    }
    if let Some(quota) = session.quota_of(&session.cwd)
        && quota.bytes_left().await?.is_some_and(|left| bytes > left)
    {
        metrics::limit_reached("quota_bytes");
        return Err(Reply::new(Code::QUOTA_EXCEEDED, "Quota exceeded"));
    }
    session.announced_size = Some(bytes);
    Ok(Reply::new(Code::OK, "ALLO ok"))
}

/// Refuses an upload after RANG. A range is for downloads; an upload that ignored it would replace the whole
/// file although the client meant a part of it.
///
/// # Errors
/// 503 after RANG. The range is cleared.
fn refuse_range(session: &mut LoggedIn) -> Result<(), Reply> {
    match session.range.take() {
        None => Ok(()),
        Some(_) => Err(Reply::new(Code::BAD_SEQUENCE, "A range is for downloads; nothing was stored")),
    }
}

/// STOR. After REST it resumes an upload that broke off.
pub(super) async fn stor(
    session: &mut LoggedIn,
    verb: &'static str,
    argument: &[u8],
) -> Result<Outcome, Reply> {
    refuse_range(session)?;
    let offset = take_offset(session)?;
    let path = session.path(argument)?;
    let may = session.access.at(&path);
    let mode = match offset {
        0 => {
            session.allow_any(&[Permission::Upload, Permission::Overwrite], &path)?;
            if !may.has(Permission::Upload) {
                require_file(session, &path).await?;
            }
            if may.has(Permission::Overwrite) { WriteMode::Replace } else { WriteMode::CreateNew }
        }
        offset => {
            session.allow(Permission::Append, &path)?;
            if !may.has(Permission::Overwrite)
                && size_of(session, &path).await?.is_some_and(|size| size != offset)
            {
                // The upload would cut off the rest of the file.
                session.allow(Permission::Overwrite, &path)?;
            }
            WriteMode::Resume { offset, replace: may.has(Permission::Overwrite) }
        }
    };
    start_upload(session, verb, argument, mode, OPENING).await
}

/// For users who may write to existing files, but not create files.
///
/// # Errors
/// 550: the file does not exist.
async fn require_file(session: &LoggedIn, path: &VirtualPath) -> Result<(), Reply> {
    if size_of(session, path).await?.is_some() { Ok(()) } else { Err(Reply::permission_denied()) }
}

/// The size of the file `path`; `None` if there is no such file.
async fn size_of(session: &LoggedIn, path: &VirtualPath) -> Result<Option<u64>, Reply> {
    let path = path.clone();
    let size = session.in_home(move |jail| match jail.open_read(&path) {
        Ok(file) => Ok(Some(file.size)),
        Err(FileError::NotFound) => Ok(None),
        Err(error) => Err(error),
    });
    size.await
}

/// APPE. A preceding REST must equal the current file size; any other offset gets 554.
pub(super) async fn appe(
    session: &mut LoggedIn,
    verb: &'static str,
    argument: &[u8],
) -> Result<Outcome, Reply> {
    refuse_range(session)?;
    let offset = take_offset(session)?;
    let path = session.path(argument)?;
    session.allow_any(&[Permission::Upload, Permission::Append], &path)?;
    if offset > 0 && size_of(session, &path).await? != Some(offset) {
        return Err(Reply::new(Code::BAD_OFFSET, "APPE begins at the end of the file"));
    }
    let may = session.access.at(&path);
    if !may.has(Permission::Upload) {
        require_file(session, &path).await?;
    }
    let mode = if may.has(Permission::Append) { WriteMode::Append } else { WriteMode::CreateNew };
    start_upload(session, verb, argument, mode, OPENING).await
}

/// STOU: stores a file under a new name. The opening reply shows the name in the form of RFC 1123 section
/// 4.1.2.9.
pub(super) async fn stou(
    session: &mut LoggedIn,
    verb: &'static str,
    argument: Option<&[u8]>,
) -> Result<Outcome, Reply> {
    refuse_range(session)?;
    take_offset(session)?;
    let base = argument.unwrap_or(b"upload");
    for _ in 0..UNIQUE_NAMES {
        let name = unique_name(base, rand::random());
        let path = session.path(&name)?;
        session.allow(Permission::Upload, &path)?;
        let taken = session.in_home(move |jail| match jail.entry(&path) {
            Ok(_) => Ok(true),
            Err(FileError::NotFound) => Ok(false),
            Err(error) => Err(error),
        });
        if !taken.await? {
            // If another session makes the name at this moment, O_EXCL refuses it, and the client tries
            // again.
            return start_upload(session, verb, &name, WriteMode::CreateNew, "FILE: ").await;
        }
    }
    Err(Reply::new(Code::FILE_BUSY, "No unique name found"))
}

/// Returns `scan.<number>.pdf` for `scan.pdf`: programs that choose files by their extension still find it.
fn unique_name(base: &[u8], number: u32) -> Vec<u8> {
    let name = base.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    // Neither the first nor the last byte of a name begins an extension.
    let dot = base[name..].iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0);
    let dot = dot.map(|dot| name + dot).filter(|dot| dot + 1 < base.len());
    let (stem, extension) = base.split_at(dot.unwrap_or(base.len()));
    [stem, format!(".{number:08x}").as_bytes(), extension].concat()
}

/// Takes the write lease, reserves quota, opens the file, and starts the transfer. `opening` is the text
/// before the name in the opening reply.
async fn start_upload(
    session: &mut LoggedIn,
    verb: &'static str,
    argument: &[u8],
    mode: WriteMode,
    opening: &str,
) -> Result<Outcome, Reply> {
    let announced = session.announced_size.take();
    let path = session.path(argument)?;
    session.allow_name(&path)?;
    let port = take_port(session)?;
    let (lease, reservation) = match session.quota_of(&path) {
        None => (None, None),
        Some(quota) => {
            // First the lease: while it is held, no other upload changes the size of this file, which counts
            // in the quota.
            let lease = take_lease(session, &path).await?;
            (Some(lease), Some(reserve_quota(session, quota, &path, mode).await?))
        }
    };
    let opened = open_upload(session, verb, &path, mode, lease, reservation.clone()).await?;
    let (registry, user) = (&session.node.registry, &session.account.user);
    let pace = session.bandwidth.pace(registry, user, BandwidthDirection::Upload, reservation);
    let coding = session.representation.coding();
    let terms = UploadTerms {
        announced: announced.filter(|_| coding.keeps_bytes()),
        coding,
        digest: session.node.storage.upload_digest != UploadDigest::Off
            && matches!(mode, WriteMode::Replace | WriteMode::CreateNew),
        sync: session.node.storage.sync_uploads,
        settle_time: session.node.storage.settle_time,
        bridge: RuntimeBridge::to_current(),
        node: Arc::clone(&session.node),
    };
    let work = TransferWork::receive(&session.node.workers, move |stream, job| {
        opened.into_inner().receive(&terms, stream, job)
    });
    let text = [opening.as_bytes(), argument].concat();
    let offset = if let WriteMode::Resume { offset, .. } = mode { offset } else { 0 };
    let kind = TransferKind::Upload;
    let transfer = Transfer { verb, kind, path, coding, offset, size: announced, pace, events: None, work };
    Ok(start_transfer(session, port, transfer, Reply::new(Code::OPENING_DATA_CONNECTION, text)))
}

/// Takes the write lease if `lease` is `None`, then opens the file. Both are one operation, because a thread
/// hop costs as much as storing a small upload. The worker waits for Redis at most `redis_timeout`.
async fn open_upload(
    session: &LoggedIn,
    verb: &'static str,
    path: &VirtualPath,
    mode: WriteMode,
    lease: Option<WriteLease>,
    reservation: Option<Arc<QuotaReservation>>,
) -> Result<OffRuntime<OpenUpload>, Reply> {
    let node = Arc::clone(&session.node);
    let (jail, path, bridge) = (Arc::clone(&session.jail), path.clone(), RuntimeBridge::to_current());
    let (registry, holder) = (session.node.registry.clone(), session.identity.session);
    let events = session.events();
    let kind = if verb == "APPE" { EventKind::Append } else { EventKind::Upload };
    let owner = (session.account.uploads == UploadMode::Atomic).then(|| session.account.user.clone());
    // `require_file` has seen the file, but another session may have removed it since.
    let may_create =
        session.access.at(&path).has(Permission::Upload) || matches!(mode, WriteMode::Resume { .. });
    let opened = session.operation(move || {
        let target = jail.upload_target(&path)?;
        let target = if may_create { target } else { target.only_existing() };
        let lease = match lease {
            Some(lease) => lease,
            None => bridge.wait(registry.lease_write(&target.key()?, holder))?,
        };
        // Without a certain lease, another session may hold the right to write a partial file of this name.
        let rivals = if lease.is_certain() { RivalPolicy::Replace } else { RivalPolicy::Respect };
        let placement = owner.as_ref().map_or(UploadPlacement::Direct, |owner| UploadPlacement::Atomic {
            owner: owner.as_str(),
            rivals,
        });
        let mut upload = target.open(mode, placement)?;
        if upload.is_fenced() {
            lease.rely_on_storage();
        } else if lease.is_certain() {
            upload.guard_by(lease_guard(&lease));
        } else {
            return Err(FileError::WriterUncertain(lease.certainty()));
        }
        if let Some(reservation) = &reservation {
            reservation.follow(upload.changes());
        }
        let recorder = events.upload_recorder(kind, &path, lease.age());
        if let Some(recorder) = recorder {
            upload.record_by(recorder);
        }
        Ok(node.workers.off_runtime(OpenUpload { upload, reservation, lease }))
    });
    opened.await?.map_err(|error| error.refusal())
}

/// Checks that the quota has room for an upload, and reserves its file. Bytes are reserved as they arrive.
async fn reserve_quota(
    session: &LoggedIn,
    quota: &Arc<HomeQuota>,
    path: &VirtualPath,
    mode: WriteMode,
) -> Result<Arc<QuotaReservation>, Reply> {
    let atomic = session.account.uploads == UploadMode::Atomic && mode != WriteMode::Append;
    let (named, user) = (path.clone(), session.account.user.clone());
    let (target, partial) = session
        .in_home(move |jail| {
            let target = jail.open_read(&named).ok().map(|file| file.size);
            Ok((target, if atomic { jail.partial_size(&named, &user)? } else { None }))
        })
        .await?;
    let written = if atomic { partial } else { target };
    let frees = match mode {
        WriteMode::Replace | WriteMode::CreateNew => written.unwrap_or(0),
        WriteMode::Resume { offset, .. } => written.unwrap_or(0).saturating_sub(offset),
        WriteMode::Append => 0,
    };
    let new = match (target, partial) {
        (None, None) => NewFile::Yes,
        (_, Some(_)) if matches!(mode, WriteMode::Resume { .. }) => NewFile::No,
        _ if atomic => NewFile::Beside,
        _ => NewFile::No,
    };
    Ok(Arc::new(quota.admit(new, frees).await?))
}

/// Takes the write lease of `path`.
async fn take_lease(session: &LoggedIn, path: &VirtualPath) -> Result<WriteLease, Reply> {
    let named = path.clone();
    let key = session.in_home(move |jail| jail.canonical_key(&named)).await?;
    let lease = session.node.registry.lease_write(&key, session.identity.session).await;
    lease.map_err(|refused| FileError::from(refused).refusal())
}

#[cfg(test)]
mod tests {
    use super::unique_name;

    #[test]
    fn a_unique_name_keeps_its_extension_last() {
        for (base, name) in [
            ("scan.pdf", "scan.0000abcd.pdf"),
            ("a.tar.gz", "a.tar.0000abcd.gz"),
            ("in.box/scan", "in.box/scan.0000abcd"),
            ("/in/scan.pdf", "/in/scan.0000abcd.pdf"),
            (".htaccess", ".htaccess.0000abcd"),
            ("in/.htaccess", "in/.htaccess.0000abcd"),
            ("ends.", "ends..0000abcd"),
            ("upload", "upload.0000abcd"),
        ] {
            assert_eq!(unique_name(base.as_bytes(), 0xabcd), name.as_bytes());
        }
    }
}
