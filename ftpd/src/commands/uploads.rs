//! STOR, STOU, APPE, ALLO (RFC 959 section 4.1.3) and COMB: what writes files.

use std::{collections::HashSet, os::unix::fs::MetadataExt, sync::Arc, thread, time::Duration};

use common::{
    auth_api::UploadMode,
    policy::Permission,
    registry::{self, LeasePath, Usage, WriteLease},
};
use tokio::runtime::Handle;

use super::{
    leases::Lessee,
    transfers::{
        Direction, LastLease, Transfer, TransferFailure, Work, run_in_background, start, take_offset,
        take_port,
    },
    upload_end::Evidence,
};
use crate::{
    activity::Watch,
    data::{progress::Progress, stream::DataStream, transfer::TransferError},
    jail::{
        Changes, CombineRequest, FileError, Jail, OpenFile, RivalPolicy, Upload, UploadPlacement, WriteMode,
        path::VirtualPath,
    },
    metrics,
    protocol::{Code, Reply, command::Comb},
    quota::{HomeQuota, NewFile, Share},
    session::{LoggedIn, Outcome},
    workers::OffRuntime,
};

/// How many random names STOU tries before it gives up.
const UNIQUE_NAMES: u32 = 16;

/// How many files COMB joins at most: each is leased while it runs.
const MAX_SOURCES: usize = 64;

/// ALLO: refused at once if there is no room. What it announced is evidence of where the upload ends: see
/// [`Evidence::believe`].
pub async fn allo(session: &mut LoggedIn, bytes: u64) -> Result<Reply, Reply> {
    // For which path is not known yet.
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
    Ok(Reply::new(Code::OK, "There is room"))
}

/// A range is of what is read. An upload that took no notice of it would replace the whole file where
/// the client meant a part.
///
/// # Errors
/// 503 after RANG, which is used up.
fn refuse_range(session: &mut LoggedIn) -> Result<(), Reply> {
    match session.range.take() {
        None => Ok(()),
        Some(_) => Err(Reply::new(Code::BAD_SEQUENCE, "A range is for downloads; nothing was stored")),
    }
}

/// STOR; after REST it goes on where an upload broke off.
pub async fn stor(session: &mut LoggedIn, verb: &'static str, argument: &[u8]) -> Result<Outcome, Reply> {
    refuse_range(session)?;
    let offset = take_offset(session)?;
    let path = session.path(argument)?;
    let may = session.access.at(&path);
    let mode = match offset {
        0 => {
            session.allow_any(&[Permission::Upload, Permission::Overwrite], &path)?;
            needs_file_unless(may.has(Permission::Upload), session, &path).await?;
            if may.has(Permission::Overwrite) { WriteMode::Replace } else { WriteMode::CreateNew }
        }
        offset => {
            session.allow(Permission::Append, &path)?;
            if !may.has(Permission::Overwrite)
                && size_of(session, &path).await?.is_some_and(|size| size != offset)
            {
                // It would cut off what is there.
                session.allow(Permission::Overwrite, &path)?;
            }
            WriteMode::Resume { offset, replace: may.has(Permission::Overwrite) }
        }
    };
    store(session, verb, argument, mode, "").await
}

/// Without a permission to make files a user writes to those that are there.
async fn needs_file_unless(may: bool, session: &LoggedIn, path: &VirtualPath) -> Result<(), Reply> {
    if may || size_of(session, path).await?.is_some() { Ok(()) } else { Err(Reply::permission_denied()) }
}

/// The size of the file that has this name, if there is one.
async fn size_of(session: &LoggedIn, path: &VirtualPath) -> Result<Option<u64>, Reply> {
    let path = path.clone();
    let size = session.in_home(move |jail| match jail.open_read(&path) {
        Ok(file) => Ok(Some(file.size)),
        Err(FileError::NotFound) => Ok(None),
        Err(error) => Err(error),
    });
    size.await
}

/// APPE. Only after a REST to the very end of the file is there anything to say against it: an
/// offset elsewhere would not be appending.
pub async fn appe(session: &mut LoggedIn, verb: &'static str, argument: &[u8]) -> Result<Outcome, Reply> {
    refuse_range(session)?;
    let offset = take_offset(session)?;
    let path = session.path(argument)?;
    session.allow_any(&[Permission::Upload, Permission::Append], &path)?;
    if offset > 0 && size_of(session, &path).await? != Some(offset) {
        return Err(Reply::new(Code::BAD_OFFSET, "APPE begins at the end of the file"));
    }
    let may = session.access.at(&path);
    needs_file_unless(may.has(Permission::Upload), session, &path).await?;
    let mode = if may.has(Permission::Append) { WriteMode::Append } else { WriteMode::CreateNew };
    store(session, verb, argument, mode, "").await
}

/// STOU: a name that was not there before, told in the reply as RFC 1123 section 4.1.2.9 wants it.
pub async fn stou(
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
            // If it appears at this moment, O_EXCL refuses it, and the client asks again.
            return store(session, verb, &name, WriteMode::CreateNew, "FILE: ").await;
        }
    }
    Err(Reply::new(Code::FILE_BUSY, "No unique name found"))
}

/// `scan.pdf` becomes `scan.<number>.pdf`: what takes files by their extension still does.
fn unique_name(base: &[u8], number: u32) -> Vec<u8> {
    let name = base.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    // A dot that a name begins with is not followed by an extension, nor is one that ends it.
    let dot = base[name..].iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0);
    let dot = dot.map(|dot| name + dot).filter(|dot| dot + 1 < base.len());
    let (stem, extension) = base.split_at(dot.unwrap_or(base.len()));
    [stem, format!(".{number:08x}").as_bytes(), extension].concat()
}

/// The common part: the lease, the file, then the transfer. `label` comes before the name in the
/// opening reply instead of a sentence.
async fn store(
    session: &mut LoggedIn,
    verb: &'static str,
    argument: &[u8],
    mode: WriteMode,
    label: &str,
) -> Result<Outcome, Reply> {
    let announced = session.announced_size.take();
    let path = session.path(argument)?;
    session.allow_name(&path)?;
    let port = take_port(session)?;
    let (lease, share) = match session.quota_of(&path) {
        None => (None, None),
        Some(quota) => {
            let lease = lease(session, &path).await?;
            (Some(lease), Some(admit(session, quota, &path, mode).await?))
        }
    };
    let opened = open(session, &path, mode, lease, share.clone()).await?;
    let (node, direction) = (&session.node, registry::BandwidthDirection::Upload);
    let governor = session.lanes.govern(node, &session.account.user, direction, share);
    let terms = Terms {
        announced: announced.filter(|_| !session.representation.converts()),
        ascii: session.representation.converts(),
        sync: session.node.storage.sync_uploads,
        settle_time: session.node.storage.settle_time,
        runtime: Handle::current(),
    };
    let work = Work::receive(node, move |stream, progress| {
        progress.govern(governor);
        let opened = opened.into_inner();
        if !opened.upload.is_fenced() {
            progress.guard_by(guard(&opened.lease));
        }
        opened.receive(&terms, stream, progress)
    });
    let label = if label.is_empty() { "Opening data connection for " } else { label };
    let text = [label.as_bytes(), argument].concat();
    let transfer = Transfer { verb, direction: Direction::Upload, path, work };
    Ok(start(session, port, transfer, Reply::new(Code::OPENING_DATA_CONNECTION, text)))
}

/// A file that was opened to be written, until the point where 226 is true. Dropped in this order.
struct Opened {
    upload: Upload,
    /// After the upload, which notes what it does when it is dropped.
    share: Option<Arc<Share>>,
    /// While it is held no other session writes this path.
    lease: WriteLease,
}

/// Takes the lease, if there is none, then opens the file: in one operation, because every way to a
/// thread and back costs a small upload as much as its bytes. The thread waits for Redis no longer
/// than a request to it may take.
async fn open(
    session: &LoggedIn,
    path: &VirtualPath,
    mode: WriteMode,
    lease: Option<WriteLease>,
    share: Option<Arc<Share>>,
) -> Result<OffRuntime<Opened>, Reply> {
    let node = Arc::clone(&session.node);
    let (jail, path, runtime) = (Arc::clone(&session.jail), path.clone(), Handle::current());
    let (registry, holder) = (session.node.registry.clone(), session.subject.session);
    let owner = (session.account.uploads == UploadMode::Atomic).then(|| session.account.user.clone());
    // `needs_file_unless` has looked; the file can have been removed since then.
    let may_create =
        session.access.at(&path).has(Permission::Upload) || matches!(mode, WriteMode::Resume { .. });
    let opened = session.operation(move || {
        let target = jail.upload_target(&path)?;
        let target = if may_create { target } else { target.only_existing() };
        let lease = match lease {
            Some(lease) => lease,
            None => runtime.block_on(registry.lease_write(&target.key()?, holder))?,
        };
        // Where Redis cannot tell who may write, an upload that runs may be another's by right.
        let rivals = if lease.is_certain() { RivalPolicy::Replace } else { RivalPolicy::Respect };
        let placement = owner.as_ref().map_or(UploadPlacement::Direct, |owner| UploadPlacement::Atomic {
            owner: owner.as_str(),
            rivals,
        });
        let mut upload = target.open(mode, placement)?;
        if upload.is_fenced() {
            lease.rely_on_storage();
        } else if lease.is_certain() {
            upload.guard_by(guard(&lease));
        } else {
            return Err(FileError::WriterUncertain(lease.certainty()));
        }
        if let Some(share) = &share {
            share.follow(upload.changes());
        }
        Ok(node.workers.keep(Opened { upload, share, lease }))
    });
    opened.await?.map_err(|error| session.subject.refuse(&error))
}

/// Says whether an upload may still write by its lease alone: what protects a file on storage whose locks do
/// not keep out other nodes.
fn guard(lease: &WriteLease) -> impl Fn() -> bool + Send + Sync + 'static {
    let age = lease.age();
    move || !age.is_expired()
}

/// What the upload may take of the quota.
async fn admit(
    session: &LoggedIn,
    quota: &Arc<HomeQuota>,
    path: &VirtualPath,
    mode: WriteMode,
) -> Result<Arc<Share>, Reply> {
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
    quota.admit(new, frees).await.map(Arc::new)
}

/// The right to write `path`: one session at a time has it, over all nodes.
async fn lease(session: &LoggedIn, path: &VirtualPath) -> Result<WriteLease, Reply> {
    let named = path.clone();
    let key = session.in_home(move |jail| jail.canonical_key(&named)).await?;
    let lease = session.node.registry.lease_write(&key, session.subject.session).await;
    lease.map_err(|refused| session.subject.refuse(&FileError::from(refused)))
}

/// What an upload is held to.
struct Terms {
    announced: Option<u64>,
    ascii: bool,
    sync: bool,
    settle_time: Duration,
    runtime: Handle,
}

impl Opened {
    /// Receives the upload to its end. Returns the lease where its holder still has to check that no other
    /// session wrote this path.
    fn receive(
        mut self,
        terms: &Terms,
        stream: &mut DataStream,
        progress: &Progress,
    ) -> Result<Option<LastLease>, TransferFailure> {
        let share = self.share.take();
        let result = self.receive_and_end(terms, stream, progress);
        if let Some(share) = share {
            share.settle();
        }
        result
    }

    fn receive_and_end(
        mut self,
        terms: &Terms,
        stream: &mut DataStream,
        progress: &Progress,
    ) -> Result<Option<LastLease>, TransferFailure> {
        let start = self.upload.begin().map_err(TransferError::File)?;
        let received = match self.store(terms, stream, start, progress) {
            // TLS has ended, though without close_notify: ALLO may prove that this is all.
            Err(TransferError::NoCloseNotify) => {
                progress.note_end();
                Ok(progress.transferred())
            }
            received => received.map_err(TransferFailure::from),
        };
        match received.and_then(|got| self.believe(terms, stream, start, got, progress)) {
            Ok(()) => {
                let (is_hidden, is_fenced) = (self.upload.is_hidden(), self.upload.is_fenced());
                self.upload.finish(terms.sync, start + progress.stored()).map_err(|error| match error {
                    FileError::WriteRightLost => TransferFailure::LeaseLost,
                    error => TransferError::File(error).into(),
                })?;
                stream.finish_receiving();
                // What was hidden has its name now, by the right that it had then.
                Ok((!is_hidden).then_some(LastLease { lease: self.lease, decides: !is_fenced }))
            }
            Err(failure @ (TransferFailure::LeaseLost | TransferFailure::Failed(TransferError::NoRight))) => {
                self.upload.leave_untouched();
                Err(failure)
            }
            Err(failure @ TransferFailure::Failed(TransferError::File(_))) => {
                self.upload.keep_if_durable();
                Err(failure)
            }
            Err(failure) => {
                self.upload.abandon();
                Err(failure)
            }
        }
    }

    /// Stores what comes. The file changes when the first bytes are there: before that the quota has no
    /// room for them where they replace others.
    fn store(
        &mut self,
        terms: &Terms,
        stream: &mut DataStream,
        start: u64,
        progress: &Progress,
    ) -> Result<u64, TransferError> {
        let first = stream.await_first(progress);
        if first > 0 && !progress.is_cancelled() {
            self.upload.prepare_write(first as u64).map_err(|error| match error {
                FileError::WriteRightLost => TransferError::NoRight,
                error => error.into(),
            })?;
        }
        if terms.ascii {
            stream.receive_ascii(self.upload.file(), start, progress)
        } else {
            stream.receive_file(self.upload.file(), start, progress)
        }
    }

    /// Collects the evidence of the end of the data for [`Evidence::believe`]. Where no lock on the storage
    /// proves that this is the only writer, the lease is checked here before a hidden file gets its name, and
    /// otherwise when everything is stored.
    ///
    /// A client that is killed closes both connections, and through a balancer the ends may arrive in
    /// either order. Where that decides whether a file gets its name, the end of the control connection
    /// has `settle_time` to arrive.
    fn believe(
        &self,
        terms: &Terms,
        stream: &DataStream,
        start: u64,
        got: u64,
        progress: &Progress,
    ) -> Result<(), TransferFailure> {
        let is_hidden = self.upload.is_hidden();
        let client_stands = progress.client_stood_at_end();
        let mut evidence = Evidence {
            end: stream.data_end(),
            client_stands,
            close_notify_required: stream.close_notify_required(),
            announced: terms.announced,
            start,
            got,
        };
        if is_hidden && client_stands && !evidence.meets_announcement() {
            thread::sleep(terms.settle_time);
            evidence.client_stands = !progress.client_has_left();
        }
        if progress.is_cancelled() {
            return Err(progress.why_cancelled().into());
        }
        evidence.believe()?;
        if is_hidden && !self.upload.is_fenced() && !terms.runtime.block_on(self.lease.is_held()) {
            return Err(TransferFailure::LeaseLost);
        }
        Ok(())
    }
}

/// COMB: joins files to the end of the target, in order, and removes them: what clients that
/// upload a file in parts send last. All names are leased in one step while it runs.
pub async fn comb(session: &mut LoggedIn, verb: &'static str, comb: Comb) -> Result<Outcome, Reply> {
    let target = session.path(&comb.target)?;
    if comb.sources.len() > MAX_SOURCES {
        metrics::limit_reached("comb_sources");
        let text = format!("At most {MAX_SOURCES} files can be joined at once");
        return Err(Reply::new(Code::BAD_ARGUMENTS, text));
    }
    let sources = comb.sources.iter().map(|name| session.path(name)).collect::<Result<Vec<_>, _>>()?;
    if !sources.iter().all(|source| session.access.may_join(source, &target)) {
        return Err(Reply::permission_denied());
    }
    session.allow_name(&target)?;
    let mut named = HashSet::from([&target]);
    if !sources.iter().all(|source| named.insert(source)) {
        return Err(session.subject.refuse(&FileError::SameFile));
    }
    let jail: Arc<Jail> = Arc::clone(&session.jail);
    let subject = Arc::clone(&session.subject);
    let sync = session.node.storage.sync_uploads;
    let (quota, lessee) = (session.quota_of(&target).cloned(), Lessee::of(session));
    let runtime = Handle::current();
    let watch = Watch::new(verb);
    let progress = Arc::clone(&watch.progress);
    Ok(run_in_background(session, watch, move || {
        let mut changes = Changes::default();
        let (mut share, mut refusal) = (None, None);
        let reserve = |bytes, is_new| {
            let Some(quota) = &quota else { return Ok(()) };
            let wanted = Usage { bytes, files: u64::from(is_new) };
            match runtime.block_on(quota.admit_whole(wanted)) {
                Ok(reserved) => share = Some(reserved),
                Err(reply) => {
                    refusal = Some(reply);
                    return Err(FileError::QuotaExceeded);
                }
            }
            Ok(())
        };
        let combined = claims_of_join(&jail, &target, &sources).and_then(|claims| {
            let paths: Vec<_> = [&target].into_iter().chain(&sources).collect();
            let lease = lessee.to_write(&jail, &paths, claims)?;
            // The target is locked when it is opened.
            let _locks = jail.lock_all_for_change(&paths[1..])?;
            if jail.locks_cross_nodes(&target)? {
                lease.rely_on_storage();
            } else {
                let age = lease.age();
                progress.guard_by(move || !age.is_expired());
            }
            let is_held = || runtime.block_on(lease.is_held());
            let joining = CombineRequest { target: &target, sources: &sources, sync };
            jail.combine(joining, &progress, &mut changes, reserve, is_held)
        });
        if let Some(share) = share {
            share.follow(changes);
            share.settle();
        }
        if let Some(refusal) = refusal {
            return refusal;
        }
        match combined {
            Ok(bytes) => Reply::new(Code::DONE, format!("Files joined, {bytes} bytes added")),
            Err(error) => subject.refuse(&error),
        }
    }))
}

/// What COMB writes, reads and removes. That a source is missing, or named twice, is found out here, before
/// anything is leased.
fn claims_of_join(
    jail: &Jail,
    target: &VirtualPath,
    sources: &[VirtualPath],
) -> Result<Vec<LeasePath>, FileError> {
    let identity = |file: &OpenFile| file.file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
    let mut files = HashSet::new();
    if let Ok(target) = jail.open_read(target) {
        files.insert(identity(&target)?);
    }
    let mut claims = vec![LeasePath::file(&jail.canonical_key(target)?)];
    for source in sources {
        if !files.insert(identity(&jail.open_read(source)?)?) {
            return Err(FileError::SameFile);
        }
        // Not the same where the name is a symbolic link.
        claims.push(LeasePath::file(&jail.canonical_key(source)?));
        claims.push(LeasePath::file(&jail.name_key(source)?));
    }
    Ok(claims)
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
