//! Leases for commands that change names: no file is renamed, removed or stamped while a session writes it.

use common::{
    registry::{LeasePath, Registry, WriteLease},
    session::SessionId,
};
use tokio::runtime::Handle;

use crate::{
    jail::{FileError, Jail, path::VirtualPath},
    session::LoggedIn,
};

/// Takes leases for a session, on a worker's thread.
pub struct Lessee {
    registry: Registry,
    session: SessionId,
    runtime: Handle,
}

impl Lessee {
    /// To be called within the runtime.
    pub fn of(session: &LoggedIn) -> Self {
        Self {
            registry: session.node.registry.clone(),
            session: session.subject.session,
            runtime: Handle::current(),
        }
    }

    /// Leases names for the time of a removal. The thread waits for Redis no longer than a request may take.
    ///
    /// While Redis is away there is a lease all the same, of this node only. A removal is safe then: the file
    /// gets no other content, and a session that writes it finds at the end that the name is gone.
    ///
    /// # Errors
    /// [`FileError::Leased`].
    pub fn to_remove(&self, claims: Vec<LeasePath>) -> Result<WriteLease, FileError> {
        Ok(self.runtime.block_on(self.registry.lease_names(claims, self.session))?)
    }

    /// Leases the names `paths`, with all paths below them, for the time of a rename.
    ///
    /// Without proof that no session writes the file or one below, a rename would let a second session write it
    /// under its new name: then only a lock on the storage tells them apart.
    ///
    /// # Errors
    /// [`FileError::Leased`], and [`FileError::WriterUncertain`] where there is no proof, and locks do not keep out other
    /// nodes.
    pub fn to_rename(&self, jail: &Jail, paths: &[&VirtualPath]) -> Result<WriteLease, FileError> {
        // Whatever they are: a file could have become a directory meanwhile.
        let claim = |path: &&VirtualPath| Ok(LeasePath::tree(&jail.name_key(path)?));
        let claims = paths.iter().map(claim).collect::<Result<_, FileError>>()?;
        let lease = self.to_remove(claims)?;
        self.prove(&lease, jail, paths)?;
        Ok(lease)
    }

    /// Leases files to write to one of `paths`, and to remove the others.
    ///
    /// # Errors
    /// [`FileError::Leased`], also while Redis is away and `registry_away` is `refuse`; [`FileError::WriterUncertain`] as
    /// for [`Self::to_rename`].
    pub fn to_write(
        &self,
        jail: &Jail,
        paths: &[&VirtualPath],
        claims: Vec<LeasePath>,
    ) -> Result<WriteLease, FileError> {
        let lease = self.runtime.block_on(self.registry.lease(claims, self.session))?;
        self.prove(&lease, jail, paths)?;
        Ok(lease)
    }

    fn prove(&self, lease: &WriteLease, jail: &Jail, paths: &[&VirtualPath]) -> Result<(), FileError> {
        for path in paths {
            if !lease.is_certain() && !jail.locks_cross_nodes(path)? {
                return Err(FileError::WriterUncertain(lease.certainty()));
            }
        }
        Ok(())
    }
}
