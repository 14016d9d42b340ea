//! COMB: combines files, such as the parts of one upload.

use std::{collections::HashSet, os::unix::fs::MetadataExt, sync::Arc};

use common::registry::{LeasePath, Usage};

use super::{activities::run_in_background, leases::LeaseTaker};
use crate::{
    jail::{Changes, CombineRequest, FileError, Jail, OpenFile},
    limits::quota::HomeQuota,
    metrics,
    protocol::{Code, Reply, command::Comb},
    session::{LoggedIn, Outcome},
    virtual_path::VirtualPath,
    work::{RuntimeBridge, activity::ActivityHandle, progress::Progress},
};

/// Maximum number of files that COMB combines. Each is leased while COMB runs.
const MAX_SOURCES: usize = 64;

/// COMB: appends files to the target, in order, and removes them. Clients send it after they have uploaded
/// the parts of a file. All names are leased in one step while it runs.
pub(super) async fn comb(session: &mut LoggedIn, verb: &'static str, comb: Comb) -> Result<Outcome, Reply> {
    let target = session.path(&comb.target)?;
    if comb.sources.len() > MAX_SOURCES {
        metrics::limit_reached("comb_sources");
        let text = format!("At most {MAX_SOURCES} files can be joined at once");
        return Err(Reply::new(Code::BAD_ARGUMENTS, text));
    }
    let sources = comb.sources.iter().map(|name| session.path(name)).collect::<Result<Vec<_>, _>>()?;
    session.audited.sources.clone_from(&sources);
    if !sources.iter().all(|source| session.access.may_combine(source, &target)) {
        return Err(Reply::permission_denied());
    }
    session.allow_name(&target)?;
    let mut named = HashSet::from([&target]);
    if !sources.iter().all(|source| named.insert(source)) {
        return Err(FileError::SameFile.refusal());
    }
    let handle = ActivityHandle::new(verb);
    let progress = Arc::clone(&handle.progress);
    let combination = Combination {
        jail: Arc::clone(&session.jail),
        quota: session.quota_of(&target).cloned(),
        target,
        sources,
        lease_taker: LeaseTaker::of(session),
        sync: session.node.storage.sync_uploads,
        bridge: RuntimeBridge::to_current(),
    };
    Ok(run_in_background(session, handle, move || combination.run(&progress)))
}

/// The work of COMB.
struct Combination {
    jail: Arc<Jail>,
    quota: Option<Arc<HomeQuota>>,
    target: VirtualPath,
    sources: Vec<VirtualPath>,
    lease_taker: LeaseTaker,
    sync: bool,
    bridge: RuntimeBridge,
}

impl Combination {
    /// Joins the files and returns the reply. Blocks.
    fn run(self, progress: &Progress) -> Reply {
        let mut changes = Changes::default();
        let (mut reservation, mut refusal) = (None, None);
        let reserve = |bytes, is_new| {
            let Some(quota) = &self.quota else { return Ok(()) };
            let wanted = Usage { bytes, files: u64::from(is_new) };
            match self.bridge.wait(quota.admit_whole(wanted)) {
                Ok(reserved) => {
                    reservation = Some(reserved);
                    Ok(())
                }
                Err(error) => {
                    refusal = Some(Reply::from(error));
                    Err(FileError::QuotaExceeded)
                }
            }
        };
        let combined = self.combine(progress, &mut changes, reserve);
        if let Some(reservation) = reservation {
            reservation.follow(changes);
            reservation.settle();
        }
        match (refusal, combined) {
            (Some(refusal), _) => refusal,
            (None, Ok(bytes)) => Reply::new(Code::DONE, format!("Files joined, {bytes} bytes added")),
            (None, Err(error)) => error.refusal(),
        }
    }

    /// Leases and locks all names, then combines the files. Returns the bytes added.
    fn combine(
        &self,
        progress: &Progress,
        changes: &mut Changes,
        reserve: impl FnOnce(u64, bool) -> Result<(), FileError>,
    ) -> Result<u64, FileError> {
        let Self { jail, target, sources, .. } = self;
        let claims = claims_of_combination(jail, target, sources)?;
        let paths: Vec<_> = [target].into_iter().chain(sources).collect();
        let lease = self.lease_taker.for_write(jail, &paths, claims)?;
        // The target is locked when it is opened.
        let _locks = jail.lock_all_for_change(&paths[1..])?;
        let is_fenced = jail.locks_cross_nodes(target)?;
        if is_fenced {
            lease.rely_on_storage();
        }
        let age = lease.age();
        let may_store = || is_fenced || !age.is_expired();
        let is_held = || self.bridge.wait(lease.is_held());
        let request = CombineRequest { target, sources, sync: self.sync };
        let bytes = jail.combine(request, progress, changes, reserve, may_store, is_held)?;
        jail.sync_parents(&paths[1..])?;
        Ok(bytes)
    }
}

/// The paths that COMB leases: the target, and of each source the file and the name. A source that is missing
/// or named twice is an error.
fn claims_of_combination(
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
        // The file and the name differ if the name is a symbolic link.
        claims.push(LeasePath::file(&jail.canonical_key(source)?));
        claims.push(LeasePath::file(&jail.name_key(source)?));
    }
    Ok(claims)
}
