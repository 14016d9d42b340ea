//! The commands, one family a file. Each handler says what happens next.

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
mod upload_end;
mod uploads;

use std::sync::Arc;

use crate::{
    failure_log::Operation,
    protocol::{
        Code, Command, Reply, Request,
        command::{Modified, Site},
    },
    session::{LoggedIn, Outcome, Session, State},
    work::Task,
};

pub use information::{session_status, system_type};

/// Runs a command whose phase has been checked.
pub async fn run(session: &mut Session, request: Request) -> Outcome {
    match request.command {
        Command::User(name) => login::user(session, name).into(),
        Command::Pass(password) => login::pass(session, password).await,
        Command::Acct(_) => Reply::new(Code::SUPERFLUOUS, "No account is needed").into(),
        Command::Rein => login::rein(session).into(),
        Command::Quit => Outcome::Close(Reply::new(Code::CLOSING, "Goodbye")),
        Command::Host(name) => login::host(session, &name).into(),
        Command::Clnt(name) => login::client(session, &name).into(),
        Command::Auth { .. } | Command::Pbsz(_) | Command::Prot(_) | Command::Ccc
            if session.node.tls.is_none() =>
        {
            Reply::new(Code::NOT_IMPLEMENTED, "There is no TLS on this server").into()
        }
        Command::Auth { private_data } => security::auth(session, private_data),
        Command::Pbsz(_) => security::pbsz(session).into(),
        Command::Prot(level) => security::prot(session, level).into(),
        Command::Ccc => security::ccc().into(),
        Command::Noop => Reply::new(Code::OK, "OK").into(),
        Command::Abor => Reply::new(Code::TRANSFER_COMPLETE, "No transfer to abort").into(),
        Command::Syst => system_type().into(),
        Command::Feat => information::feat(session).into(),
        Command::Help(topic) => information::help(topic.as_deref()).into(),
        Command::Stat(None) => session_status(session, None).into(),
        Command::Opts(opts) => information::opts(session, opts).into(),
        command => match &mut session.state {
            State::LoggedIn(logged_in) => logged_in.run_and_report(request.verb.name, command).await,
            State::Greeted | State::Named(_) => Reply::please_log_in().into(),
        },
    }
}

impl LoggedIn {
    /// Reports failures. Activities do so at their end.
    async fn run_and_report(&mut self, verb: &'static str, command: Command) -> Outcome {
        let argument = command.path().map(<[u8]>::to_vec);
        let named = argument.as_deref().and_then(|argument| self.cwd.join(argument).ok());
        self.task = Arc::new(Task { identity: Arc::clone(&self.identity), verb, path: named });
        let outcome = self.run(verb, command).await.unwrap_or_else(Outcome::Reply);
        // After the command, for those that succeed too: only CWD changes what the argument is relative
        // to, and no failed CWD does.
        let path = || argument.as_deref().and_then(|argument| self.cwd.join(argument).ok());
        match &outcome {
            Outcome::Reply(reply) if reply.code().value() >= 400 => {
                let path = path();
                let path = path.as_ref();
                self.failures.report(Operation { verb, path, transfer: None, cancelled_by: None }, reply);
            }
            Outcome::Start(_, activity) => {
                if let Some(path) = path() {
                    // The activity has not been polled yet, and nothing else sets this.
                    let _ = activity.watch.path.set(path);
                }
            }
            Outcome::Reply(_) | Outcome::Encrypt(_) | Outcome::Close(_) => {}
        }
        outcome
    }

    /// An error is the reply of a command that ended early.
    async fn run(&mut self, verb: &'static str, command: Command) -> Result<Outcome, Reply> {
        let reply = match command {
            Command::Pwd => Ok(directories::pwd(self)),
            Command::Cwd(path) => directories::cwd(self, path.as_deref()).await,
            Command::Cdup => directories::cdup(self).await,
            Command::Mkd(path) => directories::mkd(self, &path).await,
            Command::Rmd(path) => directories::rmd(self, &path).await,
            Command::Rmda(path) => return directories::rmda(self, verb, &path),
            Command::Dele(path) => files::dele(self, &path).await,
            Command::Rnfr(path) => files::rnfr(self, &path).await,
            Command::Rnto(path) => files::rnto(self, &path).await,
            Command::Size(path) => files::size(self, &path).await,
            Command::Mdtm(path) => files::mdtm(self, &path).await,
            Command::MdtmSet(modified) | Command::Mfmt(modified) => files::mfmt(self, modified).await,
            Command::Avbl(path) => files::avbl(self, path.as_deref()).await,
            Command::Pasv => data_port::pasv(self).await,
            Command::Epsv(argument) => data_port::epsv(self, argument).await,
            Command::Port(address) | Command::Eprt(address) => data_port::port(self, verb, address),
            Command::Type(transfer_type) => Ok(information::transfer_type(self, transfer_type)),
            Command::Stru => Ok(Reply::new(Code::OK, "Structure is file")),
            Command::Mode => Ok(Reply::new(Code::OK, "Mode is stream")),
            Command::Allo(bytes) => uploads::allo(self, bytes).await,
            Command::Rest(offset) => Ok(transfers::rest(self, offset)),
            Command::Rang(range) => Ok(transfers::rang(self, range)),
            Command::Retr(path) => return transfers::retr(self, verb, &path).await,
            Command::Stor(path) => return uploads::stor(self, verb, &path).await,
            Command::Stou(path) => return uploads::stou(self, verb, path.as_deref()).await,
            Command::Appe(path) => return uploads::appe(self, verb, &path).await,
            Command::List(arguments) => return listings::list(self, verb, arguments).await,
            Command::Nlst(arguments) => return listings::nlst(self, verb, arguments).await,
            Command::Mlsd(path) => return listings::mlsd(self, verb, path.as_deref()).await,
            Command::Mlst(path) => listings::mlst(self, path.as_deref()).await,
            Command::Stat(Some(arguments)) => return listings::stat(self, verb, arguments),
            Command::Hash(path) => return checksums::hash(self, verb, &path).await,
            Command::Checksum(checksum) => return checksums::checksum(self, verb, checksum).await,
            Command::Comb(comb) => return comb::comb(self, verb, comb).await,
            Command::Site(Site::Chmod { mode, path }) => files::chmod(self, mode, &path).await,
            Command::Site(Site::Utime { modified: time, path, .. }) => {
                files::mfmt(self, Modified { time, path }).await
            }
            Command::Site(Site::Help) => Ok(information::site_help()),
            Command::Site(Site::Quota) => information::quota(self).await,
            Command::Site(Site::Who) => Ok(information::who(self).await),
            // Those that need no login have been run by the caller.
            Command::User(_)
            | Command::Pass(_)
            | Command::Acct(_)
            | Command::Rein
            | Command::Quit
            | Command::Host(_)
            | Command::Clnt(_)
            | Command::Auth { .. }
            | Command::Pbsz(_)
            | Command::Prot(_)
            | Command::Ccc
            | Command::Noop
            | Command::Abor
            | Command::Syst
            | Command::Feat
            | Command::Help(_)
            | Command::Stat(None)
            | Command::Opts(_) => Err(Reply::new(Code::NOT_IMPLEMENTED, "Command not implemented")),
        };
        reply.map(Outcome::Reply)
    }
}
