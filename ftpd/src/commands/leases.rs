//! Leases for commands that change names: no file is renamed, removed or stamped while a session writes it.

use common::{
    registry::{Claim, Registry, WriteLease},
    session::SessionId,
};
use tokio::runtime::Handle;

use crate::{jail::FileError, session::LoggedIn};

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

    /// Leases names for the time of a change. The thread waits for Redis no longer than a request may take.
    ///
    /// While Redis is away there is a lease all the same, of this node only. A removal is safe then: its file
    /// gets no other content, and the session that writes it finds at the end that the name is gone.
    ///
    /// # Errors
    /// [`FileError::Leased`].
    pub fn take(&self, claims: Vec<Claim>) -> Result<WriteLease, FileError> {
        Ok(self.runtime.block_on(self.registry.lease_names(claims, self.session))?)
    }

    /// Leases files to write to them.
    ///
    /// # Errors
    /// [`FileError::Leased`], also while Redis is away and `registry_away` is `refuse`.
    pub fn take_to_write(&self, claims: Vec<Claim>) -> Result<WriteLease, FileError> {
        Ok(self.runtime.block_on(self.registry.lease(claims, self.session))?)
    }
}
