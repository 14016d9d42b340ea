//! One client: what it has told us so far, and what it may do now.

use std::sync::Arc;

use common::{auth_api::Account, policy::Permission, registry::SessionEntry};

use crate::{
    access::AccessRules,
    client_address::Ends,
    connections::Handle,
    data::{DataPort, Resumes},
    failure_log::FailureLog,
    identity::SessionIdentity,
    jail::{Changes, FileError, Jail},
    limits::{pace::SessionBandwidth, quota::HomeQuota},
    metrics,
    node::Node,
    protocol::{
        Code, Failure, Reply,
        command::{Algorithm, ByteRange},
        facts::Facts,
    },
    representation::Representation,
    tls::Handshake,
    virtual_path::{InvalidPath, VirtualPath},
    work::{RuntimeBridge, SlotRequest, Task, activity::Activity},
};

/// Everything about one client.
pub struct Session {
    pub node: Arc<Node>,
    pub handle: Arc<Handle>,
    pub ends: Ends,
    pub state: State,
    pub security: Security,
    /// Logins that failed on this connection.
    pub failures: u32,
}

/// How the connections of a session are protected.
#[derive(Debug, Default)]
pub struct Security {
    /// Of the control connection, if it is encrypted.
    pub handshake: Option<Box<Handshake>>,
    /// PBSZ was given.
    pub has_buffer_size: bool,
    /// PROT P: data connections are encrypted.
    pub is_private: bool,
}

impl Security {
    pub fn is_encrypted(&self) -> bool {
        self.handshake.is_some()
    }
}

/// How far the login is.
pub enum State {
    Greeted,
    /// USER was given, PASS is awaited.
    Named(Vec<u8>),
    LoggedIn(Box<LoggedIn>),
}

/// A user's session. A handler that takes this cannot run before the login.
pub struct LoggedIn {
    pub node: Arc<Node>,
    pub identity: Arc<SessionIdentity>,
    pub failures: Arc<FailureLog>,
    pub ends: Ends,
    pub account: Account,
    /// What of the account holds where.
    pub access: Arc<AccessRules>,
    pub jail: Arc<Jail>,
    pub quota: Option<Arc<HomeQuota>>,
    pub bandwidth: SessionBandwidth,
    pub cwd: VirtualPath,
    pub representation: Representation,
    pub data_port: Option<DataPort>,
    /// PROT P: data connections are encrypted.
    pub is_private: bool,
    /// After `EPSV ALL` (RFC 2428 section 4).
    pub epsv_only: bool,
    /// What RNFR named; forgotten by every line but RNTO.
    pub rename_from: Option<VirtualPath>,
    /// REST, for the next transfer.
    pub offset: u64,
    /// RANG, for the next transfer or HASH.
    pub range: Option<ByteRange>,
    /// ALLO, for the next upload.
    pub announced_size: Option<u64>,
    pub facts: Facts,
    /// Whether data connections prove the session.
    pub resumes: Arc<Resumes>,
    pub hash: Algorithm,
    /// The command that runs, or ran last.
    pub task: Arc<Task>,
    /// The user's name, for slots of workers.
    pub owner: Arc<str>,
    /// The session's place in the registry, given back when it ends.
    pub _entry: SessionEntry,
    pub _count: SessionCount,
}

/// What follows from a command.
pub enum Outcome {
    Reply(Reply),
    /// Something runs from now on; it ends with a reply of its own.
    Start(Option<Reply>, Activity),
    /// A TLS handshake follows the reply.
    Encrypt(Reply),
    /// The reply is the connection's last one.
    Close(Reply),
}

impl From<Reply> for Outcome {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

impl Session {
    pub fn is_logged_in(&self) -> bool {
        matches!(self.state, State::LoggedIn(_))
    }

    /// The current state if logged in.
    pub fn logged_in(&mut self) -> Option<&mut LoggedIn> {
        match &mut self.state {
            State::LoggedIn(logged_in) => Some(logged_in),
            State::Greeted | State::Named(_) => None,
        }
    }
}

impl LoggedIn {
    /// The path that a client's argument means.
    ///
    /// # Errors
    /// The reply to an argument that can name nothing.
    pub fn path(&self, argument: &[u8]) -> Result<VirtualPath, Reply> {
        self.cwd
            .join(argument)
            .map_err(|InvalidPath| Reply::new(Code::BAD_ARGUMENTS, "A path cannot hold this"))
    }

    /// # Errors
    /// The reply to a user without the permission for `path`, the same whether it is there or not.
    pub fn allow(&self, permission: Permission, path: &VirtualPath) -> Result<(), Reply> {
        self.allow_any(&[permission], path)
    }

    /// # Errors
    /// The reply to a user who has none of `permissions` for `path`, as that of [`Self::allow`].
    pub fn allow_any(&self, permissions: &[Permission], path: &VirtualPath) -> Result<(), Reply> {
        if self.access.at(path).has_any(permissions) { Ok(()) } else { Err(Reply::permission_denied()) }
    }

    /// # Errors
    /// 553 if no file may get the name of `path`.
    pub fn allow_name(&self, path: &VirtualPath) -> Result<(), Reply> {
        if !path.split().is_some_and(|(_, name)| self.access.denies_name(name)) {
            return Ok(());
        }
        metrics::upload_refused("denied_name");
        let detail = Some("no file may be named like this (denied_names)".into());
        let failure = Failure { detail, ..Failure::from("denied_name") };
        Err(Reply::new(Code::BAD_NAME, "Files may not have this name").because(failure))
    }

    /// The quota that what happens at `path` counts to, if the user has one: folders are not the home's.
    pub fn quota_of(&self, path: &VirtualPath) -> Option<&Arc<HomeQuota>> {
        self.quota.as_ref().filter(|quota| quota.counts(path))
    }

    /// The session's request for a slot, for what the current command does in its user's tree.
    pub fn slot_request(&self) -> SlotRequest {
        let root;
        let path = match &self.task.path {
            Some(path) => path,
            None => {
                root = VirtualPath::root();
                &root
            }
        };
        SlotRequest {
            user: Arc::clone(&self.owner),
            filesystem: self.jail.filesystem_of(path),
            per_user: None,
            task: Some(Arc::clone(&self.task)),
        }
    }

    /// The session's request for a slot for a transfer.
    pub fn transfer_slot_request(&self) -> SlotRequest {
        SlotRequest { per_user: self.account.limits.transfers, ..self.slot_request() }
    }

    /// Runs a short file operation of the current command, off the threads that serve connections.
    ///
    /// # Errors
    /// 450: the user's share of the slots is held by operations that do not end.
    pub async fn operation<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Reply> {
        let done = self.node.workers.operation_of(self.slot_request(), work).await;
        done.map_err(|stuck| {
            let failure =
                Failure { detail: Some(stuck.to_string().into()), ..Failure::from("storage_hangs") };
            Reply::new(Code::FILE_BUSY, "The storage does not answer at this time; try again later")
                .because(failure)
        })
    }

    /// Runs a file operation in the user's home, off the threads that serve connections.
    ///
    /// # Errors
    /// The reply to what went wrong.
    pub async fn in_home<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Jail) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, Reply> {
        let jail = Arc::clone(&self.jail);
        let result = self.operation(move || work(&jail)).await?;
        result.map_err(|error| error.refusal())
    }

    /// [`Self::in_home`] for an operation that removes or replaces files at `path`, and notes what it frees in
    /// the changes that it is given, also where it fails after a part. The quota learns of it from the same
    /// thread, so also where the session is ended meanwhile.
    ///
    /// # Errors
    /// As [`Self::in_home`].
    pub async fn remove_in_home(
        &self,
        path: &VirtualPath,
        work: impl FnOnce(&Jail, &Changes) -> Result<(), FileError> + Send + 'static,
    ) -> Result<(), Reply> {
        let (quota, bridge) = (self.quota_of(path).cloned(), RuntimeBridge::to_current());
        let removal = self.in_home(move |jail| {
            let changes = Changes::default();
            let removed = work(jail, &changes);
            if let Some(quota) = quota {
                bridge.wait(quota.report(changes.so_far()));
            }
            removed
        });
        removal.await
    }
}

/// Counts a logged-in session for as long as it lives.
pub struct SessionCount(());

impl SessionCount {
    pub fn start() -> Self {
        metrics::session_opened();
        Self(())
    }
}

impl Drop for SessionCount {
    fn drop(&mut self) {
        metrics::session_closed();
    }
}
