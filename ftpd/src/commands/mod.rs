//! The dispatch of commands: [`run`] calls one handler for each verb. A file holds one family of commands.

mod activities;
mod checksums;
mod comb;
mod data_port;
mod directories;
mod files;
mod information;
mod leases;
mod listings;
mod login;
mod quota_errors;
mod security;
mod transfers;
mod uploads;

use std::sync::Arc;

use crate::{
    audit::AuditedCommand,
    connection_table::SessionHandle,
    failure_log::{FailureLog, Operation},
    protocol::{AnyTimeCommand, Code, Command, LoggedInCommand, Reply, Request, site::Site},
    session::{LoggedIn, Outcome, Session},
    virtual_path::VirtualPath,
    work::Task,
};

pub(crate) use information::{session_status, system_type};

/// Runs a command, or refuses it if it may not run now.
pub(crate) async fn run(session: &mut Session, request: Request) -> Outcome {
    let Request { verb, command } = request;
    if verb.needs_tls && session.node.tls.is_none() {
        return Reply::new(Code::NOT_IMPLEMENTED, "TLS is not available on this server").into();
    }
    let handle = Arc::clone(&session.handle);
    match command {
        Command::AnyTime(command) => run_any_time(session, command).await,
        Command::LoggedIn(command) => match session.logged_in() {
            Some(logged_in) => run_and_report(logged_in, &handle, verb.name, command).await,
            None => Reply::please_log_in().into(),
        },
    }
}

async fn run_any_time(session: &mut Session, command: AnyTimeCommand) -> Outcome {
    use AnyTimeCommand as C;
    match command {
        C::User(name) => login::user(session, name).into(),
        C::Pass(password) => login::pass(session, password).await,
        C::Acct(_) => login::acct().into(),
        C::Rein => login::rein(session).into(),
        C::Quit => Outcome::Close(Reply::goodbye()),
        C::Host(name) => login::host(session, &name).into(),
        C::Clnt(name) => login::client(session, &name).into(),
        C::Auth { private_data } => security::auth(session, private_data),
        C::Pbsz(_) => security::pbsz(session).into(),
        C::Prot(level) => security::prot(session, level).into(),
        C::Ccc => security::ccc().into(),
        C::Stat => session_status(session, None).into(),
        C::Syst => system_type().into(),
        C::Feat => information::feat(session).into(),
        C::Help(topic) => information::help(topic.as_deref()).into(),
        C::Noop => Reply::ok().into(),
        C::Opts(opts) => information::opts(session, opts).into(),
    }
}

/// Runs a command of a logged-in session, and reports its failure, and its success if it changes something.
/// An activity reports its own end.
async fn run_and_report(
    session: &mut LoggedIn,
    handle: &SessionHandle,
    verb: &'static str,
    command: LoggedInCommand,
) -> Outcome {
    let argument = command.path().map(<[u8]>::to_vec);
    let resolve = |cwd: &VirtualPath| argument.as_deref().and_then(|argument| cwd.join(argument).ok());
    session.task =
        Arc::new(Task { identity: Arc::clone(&session.identity), verb, path: resolve(&session.cwd) });
    handle.activity.note_path(session.task.path.as_ref());
    session.audited = AuditedCommand::new(verb, &command);
    if matches!(command, LoggedInCommand::Rnto(_)) {
        session.audited.from.clone_from(&session.rename_from);
    }
    let interruption = Interruption::watch(session);
    let outcome = run_logged_in(session, verb, command).await.unwrap_or_else(Outcome::Reply);
    interruption.forget();
    match &outcome {
        Outcome::Reply(reply) if reply.code().is_failure() || session.audited.records_success() => {
            // Only a successful CWD changes the directory that the argument is relative to.
            let path = resolve(&session.cwd);
            let (audited, path) = (&session.audited, path.as_ref());
            let operation = Operation { verb, audited, path, transfer: None, cancelled_by: None };
            session.failures.report(operation, reply);
        }
        Outcome::Start(_, activity) => {
            if let Some(path) = resolve(&session.cwd) {
                // The activity has not been polled yet, and nothing else sets its path.
                let _ = activity.handle.path.set(path);
            }
        }
        Outcome::Reply(_) | Outcome::Encrypt(_) | Outcome::Close(_) => {}
    }
    outcome
}

/// Records in the audit trail that a command was dropped while it ran: the session ends at once, and a worker
/// may still finish the file operation.
struct Interruption(Option<(Arc<FailureLog>, AuditedCommand, Arc<Task>)>);

impl Interruption {
    /// Watches the current command, if its success is recorded.
    fn watch(session: &LoggedIn) -> Self {
        let is_recorded = session.audited.records_success() && session.failures.records();
        Self(
            is_recorded
                .then(|| (Arc::clone(&session.failures), session.audited.clone(), Arc::clone(&session.task))),
        )
    }

    /// The command has ended by itself.
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Interruption {
    fn drop(&mut self) {
        if let Some((failures, audited, task)) = &self.0 {
            failures.record_interruption(audited, task.path.as_ref());
        }
    }
}

/// # Errors
/// The reply of a command that ended early.
async fn run_logged_in(
    session: &mut LoggedIn,
    verb: &'static str,
    command: LoggedInCommand,
) -> Result<Outcome, Reply> {
    use LoggedInCommand as C;
    let reply = match command {
        C::Pwd => Ok(directories::pwd(session)),
        C::Cwd(path) => directories::cwd(session, path.as_deref()).await,
        C::Cdup => directories::cdup(session).await,
        C::Mkd(path) => directories::mkd(session, &path).await,
        C::Rmd(path) => directories::rmd(session, &path).await,
        C::Rmda(path) => return directories::rmda(session, verb, &path),
        C::Dele(path) => files::dele(session, &path).await,
        C::Rnfr(path) => files::rnfr(session, &path).await,
        C::Rnto(path) => files::rnto(session, &path).await,
        C::Size(path) => files::size(session, &path).await,
        C::Mdtm(path) => files::mdtm(session, &path).await,
        C::MdtmSet(modified) | C::Mfmt(modified) => files::mfmt(session, modified).await,
        C::Avbl(path) => files::avbl(session, path.as_deref()).await,
        C::Pasv => data_port::pasv(session).await,
        C::Epsv(argument) => data_port::epsv(session, argument).await,
        C::Port(address) | C::Eprt(address) => data_port::port(session, verb, address),
        C::Type(transfer_type) => Ok(information::transfer_type(session, transfer_type)),
        C::Stru => Ok(information::structure()),
        C::Mode => Ok(information::mode()),
        C::Allo(bytes) => uploads::allo(session, bytes).await,
        C::Rest(offset) => Ok(transfers::rest(session, offset)),
        C::Rang(range) => Ok(transfers::rang(session, range)),
        C::Retr(path) => return transfers::retr(session, verb, &path).await,
        C::Stor(path) => return uploads::stor(session, verb, &path).await,
        C::Stou(path) => return uploads::stou(session, verb, path.as_deref()).await,
        C::Appe(path) => return uploads::appe(session, verb, &path).await,
        C::Abor => Ok(Reply::new(Code::TRANSFER_COMPLETE, "No transfer to abort")),
        C::List(arguments) => return listings::list(session, verb, arguments).await,
        C::Nlst(arguments) => return listings::nlst(session, verb, arguments).await,
        C::Mlsd(path) => return listings::mlsd(session, verb, path.as_deref()).await,
        C::Mlst(path) => listings::mlst(session, path.as_deref()).await,
        C::StatPath(arguments) => return listings::stat(session, verb, arguments),
        C::Hash(path) => return checksums::hash(session, verb, &path).await,
        C::Checksum(checksum) => return checksums::checksum(session, verb, checksum).await,
        C::Comb(comb) => return comb::comb(session, verb, comb).await,
        C::Site(Site::Chmod { mode, path }) => files::chmod(session, mode, &path).await,
        C::Site(Site::Utime(modified)) => files::mfmt(session, modified).await,
        C::Site(Site::Who) => Ok(information::who(session).await),
        C::Site(Site::Quota) => information::quota(session).await,
        C::Site(Site::Help) => Ok(information::site_help()),
    };
    reply.map(Outcome::Reply)
}
