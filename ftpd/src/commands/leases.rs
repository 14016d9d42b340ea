//! Write leases for commands that rename, remove or join files, or set their time: no other session may write
//! such a file meanwhile.

use crate::{
    jail::{FileError, Jail},
    session::LoggedIn,
    virtual_path::VirtualPath,
    work::RuntimeBridge,
};
use common::{
    registry::{LeasePath, Registry, WriteLease},
    session::SessionId,
};

/// Takes write leases for a session, on a worker.
pub(super) struct LeaseTaker {
    registry: Registry,
    session: SessionId,
    bridge: RuntimeBridge,
}

impl LeaseTaker {
    /// Call it within the runtime.
    pub(super) fn of(session: &LoggedIn) -> Self {
        Self {
            registry: session.node.registry.clone(),
            session: session.identity.session,
            bridge: RuntimeBridge::to_current(),
        }
    }

    /// Leases names for a removal, or for a change of a file's time. The worker waits for Redis at most
    /// `redis_timeout`.
    ///
    /// While Redis is away, the lease holds on this node only. That is enough, because the content of the
    /// file does not change, and a session that writes the file finds at its end that the name is gone.
    ///
    /// # Errors
    /// [`FileError::Leased`].
    pub(super) fn for_removal(&self, claims: Vec<LeasePath>) -> Result<WriteLease, FileError> {
        Ok(self.bridge.wait(self.registry.lease_names(claims, self.session))?)
    }

    /// Leases the names `paths`, with all paths below them, for a rename.
    ///
    /// A file that another session writes must not be renamed: another session could then lease the new
    /// name and write the same file, and only a lock on the storage would prevent that.
    ///
    /// # Errors
    /// [`FileError::Leased`]; [`FileError::WriterUncertain`] if the lease is not certain and locks on the
    /// storage do not hold on all nodes.
    pub(super) fn for_rename(&self, jail: &Jail, paths: &[&VirtualPath]) -> Result<WriteLease, FileError> {
        // A tree also for a file: another session may replace it by a directory meanwhile.
        let claim = |path: &&VirtualPath| Ok(LeasePath::tree(&jail.name_key(path)?));
        let claims = paths.iter().map(claim).collect::<Result<_, FileError>>()?;
        let lease = self.for_removal(claims)?;
        self.require_protection(&lease, jail, paths)?;
        Ok(lease)
    }

    /// Leases `claims`, to write to one of `paths` and to remove the others.
    ///
    /// # Errors
    /// [`FileError::Leased`], also while Redis is away and `registry_away` is `refuse`;
    /// [`FileError::WriterUncertain`] as for [`Self::for_rename`].
    pub(super) fn for_write(
        &self,
        jail: &Jail,
        paths: &[&VirtualPath],
        claims: Vec<LeasePath>,
    ) -> Result<WriteLease, FileError> {
        let lease = self.bridge.wait(self.registry.lease(claims, self.session))?;
        self.require_protection(&lease, jail, paths)?;
        Ok(lease)
    }

    /// Checks that no other session can write one of `paths`: by the lease, or by locks on the storage.
    fn require_protection(
        &self,
        lease: &WriteLease,
        jail: &Jail,
        paths: &[&VirtualPath],
    ) -> Result<(), FileError> {
        for path in paths {
            if !lease.is_certain() && !jail.locks_cross_nodes(path)? {
                return Err(FileError::WriterUncertain(lease.certainty()));
            }
        }
        Ok(())
    }
}
