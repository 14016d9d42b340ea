//! The state of a session: login, security, and what a logged-in user has selected.

use std::sync::Arc;

use common::{auth_api::Account, policy::Permission, registry::SessionEntry};

use crate::{
    access::AccessRules,
    audit::{AuditedCommand, SessionEnd},
    client_address::ConnectionAddresses,
    connection_table::{EndRequest, SessionHandle},
    data::{DataPort, Resumption},
    events::{EventActor, SessionEvents},
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
        reply::ReplyText,
    },
    representation::Representation,
    revocation,
    tls::Handshake,
    virtual_path::{InvalidPath, VirtualPath},
    work::{RuntimeBridge, SlotRequest, Task, activity::Activity},
};

/// The session of one client, from the greeting to the end of its control connection.
pub(crate) struct Session {
    pub node: Arc<Node>,
    pub handle: Arc<SessionHandle>,
    pub addresses: ConnectionAddresses,
    pub state: LoginState,
    pub security: Security,
    /// Number of failed logins on this connection.
    pub failed_logins: u32,
}

/// Protection of the control connection and the data connections.
#[derive(Debug, Default)]
pub(crate) struct Security {
    /// The handshake of the control connection. `None`: plain text.
    pub handshake: Option<Box<Handshake>>,
    /// PBSZ was sent, which PROT requires.
    pub has_buffer_size: bool,
    /// PROT P: data connections are encrypted.
    pub is_private: bool,
}

impl Security {
    pub(crate) fn is_encrypted(&self) -> bool {
        self.handshake.is_some()
    }
}

/// Progress of the login.
pub(crate) enum LoginState {
    Greeted,
    /// USER was sent; PASS must follow.
    Named(Vec<u8>),
    LoggedIn(Box<LoggedIn>),
}

/// The state of a logged-in session. A command handler that takes it cannot run before the login.
pub(crate) struct LoggedIn {
    pub node: Arc<Node>,
    pub identity: Arc<SessionIdentity>,
    pub failures: Arc<FailureLog>,
    pub addresses: ConnectionAddresses,
    pub account: Account,
    /// The account's permissions by path.
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
    /// The path of RNFR. Every line other than RNTO clears it.
    pub rename_from: Option<VirtualPath>,
    /// Offset of REST for the next transfer.
    pub offset: u64,
    /// Range of RANG for the next download or HASH.
    pub range: Option<ByteRange>,
    /// Size from ALLO for the next upload, in bytes.
    pub announced_size: Option<u64>,
    /// Facts that MLSD and MLST show, selected by OPTS MLST.
    pub facts: Facts,
    /// Evidence that data connections come from this session's client: they resume its TLS session.
    pub resumption: Arc<Resumption>,
    /// Algorithm of HASH, selected by OPTS HASH.
    pub hash: Algorithm,
    /// The current command, or the last one.
    pub task: Arc<Task>,
    /// The same for the audit trail.
    pub audited: AuditedCommand,
    /// The user's name, under which the workers count the user's slots.
    pub owner: Arc<str>,
    /// The session's entry in the registry, removed when the session ends.
    pub _entry: SessionEntry,
    pub _count: SessionCount,
    /// Records the end of the login.
    pub end: SessionEnd,
}

/// The result of a command, which tells the control connection how to continue.
pub(crate) enum Outcome {
    Reply(Reply),
    /// Send the reply, if any, and run the activity, which ends with its own reply.
    Start(Option<Reply>, Activity),
    /// Send the reply, then answer a TLS handshake.
    Encrypt(Reply),
    /// Send the reply and close the connection.
    Close(Reply),
}

impl From<Reply> for Outcome {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

/// The end of a session by the node: the last reply, and the reason for log and metrics.
pub(crate) struct EndedByNode {
    pub reply: Reply,
    pub reason: &'static str,
}

impl EndedByNode {
    pub(crate) fn new(text: impl Into<ReplyText>, reason: &'static str) -> Self {
        Self { reply: Reply::new(Code::SERVICE_UNAVAILABLE, text), reason }
    }

    /// The end of the session, if one was requested that does not wait for the activity.
    pub(crate) fn at_once(handle: &SessionHandle) -> Option<Self> {
        match (handle.end_request()?, handle.revocation()) {
            (EndRequest::Drain, _) => None,
            (EndRequest::MakeRoom, _) => Some(Self::new("Too many connections; log in sooner", "made_room")),
            (EndRequest::EndSession, Some(reason)) => {
                Some(Self::new(revocation::reply_text(reason), "revoked"))
            }
            (EndRequest::EndSession, None) => {
                const TEXT: &str = "Session terminated by the administrator";
                Some(match handle.end_reason() {
                    Some(reason) => Self::new(format!("{TEXT}: {}", printable(reason)).into_bytes(), "ended"),
                    None => Self::new(TEXT, "ended"),
                })
            }
            (EndRequest::StopNode, _) => Some(Self::new("Server is shutting down; please reconnect", "stop")),
        }
    }
}

/// The printable characters of an administrator's reason, at most [`REASON_LENGTH`].
fn printable(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_control()).take(REASON_LENGTH).collect()
}

/// Maximum number of characters of an administrator's reason in the reply.
const REASON_LENGTH: usize = 64;

impl Session {
    pub(crate) fn is_logged_in(&self) -> bool {
        matches!(self.state, LoginState::LoggedIn(_))
    }

    /// Notes for the audit trail why the login ends, if there is one. Only the first reason counts.
    pub(crate) fn note_end(&self, reason: &'static str) {
        if let LoginState::LoggedIn(logged_in) = &self.state {
            logged_in.end.note(reason);
        }
    }

    /// The state of the logged-in session. `None` before the login.
    pub(crate) fn logged_in(&mut self) -> Option<&mut LoggedIn> {
        match &mut self.state {
            LoginState::LoggedIn(logged_in) => Some(logged_in),
            LoginState::Greeted | LoginState::Named(_) => None,
        }
    }
}

impl LoggedIn {
    /// The virtual path of a command's argument, relative to the working directory.
    ///
    /// # Errors
    /// 501: the argument has a character or length that no path may have.
    pub(crate) fn path(&self, argument: &[u8]) -> Result<VirtualPath, Reply> {
        self.cwd.join(argument).map_err(|InvalidPath| Reply::new(Code::BAD_ARGUMENTS, "Invalid path"))
    }

    /// Checks a permission for `path`.
    ///
    /// # Errors
    /// 550, with the same text whether `path` exists or not.
    pub(crate) fn allow(&self, permission: Permission, path: &VirtualPath) -> Result<(), Reply> {
        self.allow_any(&[permission], path)
    }

    /// Checks that the user has one of `permissions` for `path`.
    ///
    /// # Errors
    /// As [`Self::allow`].
    pub(crate) fn allow_any(&self, permissions: &[Permission], path: &VirtualPath) -> Result<(), Reply> {
        if self.access.at(path).has_any(permissions) { Ok(()) } else { Err(Reply::permission_denied()) }
    }

    /// Checks the last name of `path` against `denied_names`.
    ///
    /// # Errors
    /// 553.
    pub(crate) fn allow_name(&self, path: &VirtualPath) -> Result<(), Reply> {
        if !path.split().is_some_and(|(_, name)| self.access.denies_name(name)) {
            return Ok(());
        }
        metrics::upload_refused("denied_name");
        let detail = Some("the name matches a pattern of denied_names".into());
        let failure = Failure { detail, ..Failure::from("denied_name") };
        Err(Reply::new(Code::BAD_NAME, "File name not allowed").because(failure))
    }

    /// The quota charged for changes at `path`, if any. Shared folders are not charged.
    pub(crate) fn quota_of(&self, path: &VirtualPath) -> Option<&Arc<HomeQuota>> {
        self.quota.as_ref().filter(|quota| quota.counts(path))
    }

    /// The request for a worker slot for a file operation of the current command.
    pub(crate) fn slot_request(&self) -> SlotRequest {
        let filesystem = match &self.task.path {
            Some(path) => self.jail.filesystem_of(path),
            None => self.jail.filesystem_of(&VirtualPath::root()),
        };
        SlotRequest {
            user: Arc::clone(&self.owner),
            filesystem,
            per_user: None,
            task: Some(Arc::clone(&self.task)),
        }
    }

    /// The request for a worker slot for a transfer.
    pub(crate) fn transfer_slot_request(&self) -> SlotRequest {
        SlotRequest { per_user: self.account.limits.transfers, ..self.slot_request() }
    }

    /// Notes the events of this session.
    pub(crate) fn events(&self) -> SessionEvents {
        self.node.events.of_session(|| EventActor {
            session: self.identity.session,
            user: self.identity.user.clone(),
            groups: self.account.groups.clone(),
            address: self.identity.address,
        })
    }

    /// Runs a short file operation of the current command on a worker.
    ///
    /// # Errors
    /// 450: operations that do not end hold all worker slots of the user.
    pub(crate) async fn operation<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Reply> {
        let done = self.node.workers.operation_of(self.slot_request(), work).await;
        done.map_err(|stuck| {
            let failure =
                Failure { detail: Some(stuck.to_string().into()), ..Failure::from("storage_hangs") };
            Reply::new(Code::FILE_BUSY, "Storage is not responding; try again later").because(failure)
        })
    }

    /// Runs a short file operation in the user's home on a worker.
    ///
    /// # Errors
    /// The reply for the error of the storage, or as [`Self::operation`].
    pub(crate) async fn in_home<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Jail) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, Reply> {
        let jail = Arc::clone(&self.jail);
        let result = self.operation(move || work(&jail)).await?;
        result.map_err(|error| error.refusal())
    }

    /// [`Self::in_home`] for an operation that removes or replaces files at `path`. The operation notes the
    /// freed space in the `Changes`, even if it fails halfway. The worker updates the quota, so the update is
    /// not lost if the session ends meanwhile.
    ///
    /// # Errors
    /// As [`Self::in_home`].
    pub(crate) async fn remove_in_home(
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

/// Counts a logged-in session in the metrics until it is dropped.
pub(crate) struct SessionCount(());

impl SessionCount {
    pub(crate) fn start() -> Self {
        metrics::session_opened();
        Self(())
    }
}

impl Drop for SessionCount {
    fn drop(&mut self) {
        metrics::session_closed();
    }
}
