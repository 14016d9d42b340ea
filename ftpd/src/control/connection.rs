//! The loop of one control connection: reads command lines, runs the commands, and sends the replies.
//!
//! The loop reads on during an activity, so that ABOR, STAT, NOOP and QUIT are answered meanwhile. Every
//! other command waits for the end of the activity.

mod end;

use std::{pin::Pin, sync::Arc};

use tokio::{
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

use self::end::ConnectionEnd;
use super::wire::{ControlStream, Received};
use crate::{
    client_address::ConnectionAddresses,
    commands::{self, session_status},
    connection_table::ConnectionEntry,
    metrics,
    node::Node,
    protocol::{
        self, AnyTimeCommand, Code, Command, LoggedInCommand, ParseError, Reply, Request,
        line::{Line, LineBuffer, MAX_LINE},
    },
    session::{EndedByNode, LoginState, Outcome, Security, Session},
    work::activity::{Activity, CancelledBy},
};

/// Bytes of command lines read ahead while a command waits for the end of the activity.
const READ_AHEAD: usize = 2 * MAX_LINE;

/// One line of the client: a request, or the reason why the line is not one.
type ParsedLine = Result<Request, ParseError>;

/// A client's control connection with its session.
pub struct ControlConnection {
    stream: ControlStream,
    lines: LineBuffer,
    session: Session,
    activity: ActivityState,
    /// The next line, read during the activity that it has to wait for.
    held: Option<ParsedLine>,
    /// Time of the last command, or of the end of the last activity.
    last_used: Instant,
    /// Time of the last login or REIN; before the first login, when the connection began.
    login_changed: Instant,
    /// Command lines since `login_changed`. Counted only while no user is logged in.
    commands_without_login: u32,
    /// Rejected commands in a row. A reply such as 550 for a missing file does not count as a rejection:
    /// before they upload a tree, clients ask for hundreds of files.
    rejected_commands: u32,
    /// Keeps the connection in the node's table.
    _entry: ConnectionEntry,
}

/// The activity beside the control connection, if one runs.
enum ActivityState {
    Idle,
    Running { activity: Activity, follow_up: FollowUp },
}

/// The step that follows the reply of the activity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FollowUp {
    NextCommand,
    /// 226, the reply to ABOR (RFC 959 section 4.1.3).
    AbortReply,
    /// 221, the reply to QUIT; then the connection ends.
    Goodbye,
}

/// An event that the loop waits for.
enum LoopEvent {
    Received(Received),
    ActivityEnded(Reply),
    EndRequested,
    Timer,
}

impl ControlConnection {
    pub fn new(
        stream: TcpStream,
        node: Arc<Node>,
        addresses: ConnectionAddresses,
        entry: ConnectionEntry,
    ) -> Self {
        Self {
            stream: ControlStream::new(stream, node.timeouts.reply),
            lines: LineBuffer::new(),
            session: Session {
                handle: Arc::clone(entry.handle()),
                node,
                addresses,
                state: LoginState::Greeted,
                security: Security::default(),
                failed_logins: 0,
            },
            activity: ActivityState::Idle,
            held: None,
            last_used: Instant::now(),
            login_changed: Instant::now(),
            commands_without_login: 0,
            rejected_commands: 0,
            _entry: entry,
        }
    }

    /// Serves the client until it leaves or the node ends the session. With `implicit_tls` the connection
    /// begins with a TLS handshake, and data connections are private from the start.
    pub async fn serve(mut self, implicit_tls: bool) {
        if implicit_tls {
            if Box::pin(self.encrypt()).await.is_err() {
                return;
            }
            self.session.security.has_buffer_size = true;
            self.session.security.is_private = true;
        }
        self.push(&Reply::new(Code::READY, self.session.node.greeting.clone()));
        let end = self.converse().await;
        self.finish(end).await;
    }

    async fn converse(&mut self) -> ConnectionEnd {
        let timer = sleep_until(self.deadline());
        tokio::pin!(timer);
        loop {
            if let Some(end) = self.run_lines(timer.as_mut()).await {
                return end;
            }
            if self.stream.flush().await.is_err() {
                return ConnectionEnd::ClientGone;
            }
            let end = match self.next_event(timer.as_mut()).await {
                LoopEvent::Received(Received::Bytes) => None,
                LoopEvent::Received(Received::ForeignProtocol) => Some(self.end_foreign_protocol()),
                LoopEvent::Received(Received::End) => Some(ConnectionEnd::ClientGone),
                LoopEvent::ActivityEnded(reply) => self.conclude_activity(&reply),
                LoopEvent::EndRequested => self.requested_end(),
                LoopEvent::Timer => {
                    let end = self.expired();
                    timer.as_mut().reset(self.deadline());
                    end
                }
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    async fn next_event(&mut self, timer: Pin<&mut Sleep>) -> LoopEvent {
        // While a line is held, no other command runs. Bytes are still read, up to a limit, because the end
        // of the connection is noticed only behind them.
        let may_read = self.held.is_none() || self.lines.len() < READ_AHEAD;
        let activity_end = async {
            match &mut self.activity {
                ActivityState::Running { activity, .. } => activity.run.as_mut().await,
                ActivityState::Idle => std::future::pending().await,
            }
        };
        let input = async {
            if may_read {
                self.stream.fill(&mut self.lines).await
            } else {
                self.stream.closed_by_client().await;
                Received::End
            }
        };
        tokio::select! {
            // A lost control connection is handled before the end of the activity.
            biased;
            received = input => LoopEvent::Received(received),
            () = self.session.handle.end_requested() => LoopEvent::EndRequested,
            reply = activity_end => LoopEvent::ActivityEnded(reply),
            () = timer => LoopEvent::Timer,
        }
    }

    /// Runs the complete lines that have arrived, up to the first line that has to wait for the activity.
    async fn run_lines(&mut self, mut timer: Pin<&mut Sleep>) -> Option<ConnectionEnd> {
        loop {
            let line = match self.held.take() {
                Some(held) => held,
                None => match self.lines.next_line()? {
                    Line::TooLong => Err(ParseError::TooLong),
                    Line::Command(line) => {
                        let parsed = protocol::parse(&line);
                        let verb = parsed.as_ref().ok().map(|request| request.verb.name);
                        self.session.handle.dialogue.note_command(&line, verb);
                        parsed
                    }
                },
            };
            if self.must_wait(&line) {
                self.held = Some(line);
                return None;
            }
            if let Some(end) = self.reached_max_age() {
                return Some(end);
            }
            self.last_used = Instant::now();
            let was_logged_in = self.session.is_logged_in();
            if let Some(end) = self.run_line(line).await {
                return Some(end);
            }
            if was_logged_in != self.session.is_logged_in() {
                self.commands_without_login = 0;
                self.login_changed = Instant::now();
                timer.as_mut().reset(self.deadline());
            }
            if self.stream.must_flush() && self.stream.flush().await.is_err() {
                return Some(ConnectionEnd::ClientGone);
            }
            if let Some(end) = self.requested_end() {
                return Some(end);
            }
        }
    }

    /// Returns true if the line has to wait for the end of the activity. After ABOR or QUIT every line has to
    /// wait, which bounds the number of replies that the client still expects.
    fn must_wait(&self, line: &ParsedLine) -> bool {
        let ActivityState::Running { activity, follow_up } = &self.activity else { return false };
        let may_run = |request: &Request| match request.command {
            Command::LoggedIn(LoggedInCommand::Abor) => true,
            _ => request.during_transfer() && !activity.handle.keeps_order(),
        };
        *follow_up != FollowUp::NextCommand || !line.as_ref().is_ok_and(may_run)
    }

    async fn run_line(&mut self, line: ParsedLine) -> Option<ConnectionEnd> {
        if let Some(end) = self.count_command_without_login() {
            return Some(end);
        }
        let is_rename =
            matches!(&line, Ok(Request { command: Command::LoggedIn(LoggedInCommand::Rnto(_)), .. }));
        // RNTO must follow RNFR immediately; any other line cancels the rename (RFC 959 section 4.1.3).
        if !is_rename && let Some(logged_in) = self.session.logged_in() {
            logged_in.rename_from = None;
        }
        match line {
            Err(error) => match error.reply() {
                Some(reply) => self.answer(error.verb().unwrap_or("unknown"), &reply),
                None => Some(self.end_foreign_protocol()),
            },
            Ok(request) if matches!(self.activity, ActivityState::Running { .. }) => {
                self.run_during_activity(&request)
            }
            Ok(request) => self.run_command(request).await,
        }
    }

    fn count_command_without_login(&mut self) -> Option<ConnectionEnd> {
        if self.session.is_logged_in() {
            return None;
        }
        self.commands_without_login += 1;
        if self.commands_without_login <= self.session.node.limits.unauthenticated_commands {
            return None;
        }
        metrics::limit_reached("max_unauthenticated_commands");
        Some(ConnectionEnd::by_node("Too many commands before login", "unauthenticated_commands"))
    }

    /// Runs one of the commands that are possible during an activity.
    fn run_during_activity(&mut self, request: &Request) -> Option<ConnectionEnd> {
        let ActivityState::Running { activity, follow_up } = &mut self.activity else { return None };
        let reply = match request.command {
            Command::LoggedIn(LoggedInCommand::Abor) => {
                activity.handle.cancel(CancelledBy::Abor);
                *follow_up = FollowUp::AbortReply;
                return None;
            }
            Command::AnyTime(AnyTimeCommand::Quit) => {
                *follow_up = FollowUp::Goodbye;
                return None;
            }
            Command::AnyTime(AnyTimeCommand::Stat) => session_status(&self.session, Some(&activity.handle)),
            _ => Reply::ok(),
        };
        self.answer(request.verb.name, &reply)
    }

    async fn run_command(&mut self, request: Request) -> Option<ConnectionEnd> {
        let verb = request.verb.name;
        self.session.handle.activity.note_command(verb);
        let outcome = self.execute(request).await;
        // `last_used` is the time at which the command began.
        metrics::command_took(verb, self.last_used.elapsed());
        match outcome {
            Err(end) => Some(ConnectionEnd::ByNode(end)),
            Ok(Outcome::Reply(reply)) => self.answer(verb, &reply),
            Ok(Outcome::Start(opening, activity)) => {
                self.start(activity, opening.as_ref());
                None
            }
            Ok(Outcome::Encrypt(reply)) => {
                self.push_reply(verb, &reply);
                Box::pin(self.encrypt()).await.err()
            }
            Ok(Outcome::Close(reply)) => {
                metrics::command(verb, reply.code());
                self.push(&reply);
                Some(ConnectionEnd::Silent)
            }
        }
    }

    /// Runs a command to its end, unless the session has to end at once.
    async fn execute(&mut self, request: Request) -> Result<Outcome, EndedByNode> {
        let handle = Arc::clone(&self.session.handle);
        // Boxed, so that idle sessions do not hold the memory of a running command.
        let mut execution = Box::pin(commands::run(&mut self.session, request));
        loop {
            tokio::select! {
                biased;
                outcome = &mut execution => return Ok(outcome),
                () = handle.end_requested() => {}
            }
            if let Some(end) = EndedByNode::at_once(&handle) {
                return Err(end);
            }
        }
    }

    /// Runs an activity beside the control connection. `opening` is the first reply, such as 150; the
    /// activity's own reply follows at its end.
    fn start(&mut self, activity: Activity, opening: Option<&Reply>) {
        if activity.is_upload {
            match self.stream.descriptor() {
                Ok(descriptor) => activity.handle.client.set_control(descriptor),
                Err(_) => activity.handle.cancel(CancelledBy::NoDescriptor),
            }
        }
        self.session.handle.activity.start_transfer(&activity.handle);
        self.activity = ActivityState::Running { activity, follow_up: FollowUp::NextCommand };
        self.rejected_commands = 0;
        if let Some(opening) = opening {
            self.push(opening);
        }
    }

    /// Replies to a command. Ends the session after too many rejected commands in a row.
    fn answer(&mut self, verb: &'static str, reply: &Reply) -> Option<ConnectionEnd> {
        self.push_reply(verb, reply);
        if self.rejected_commands < self.session.node.limits.errors {
            return None;
        }
        metrics::limit_reached("max_errors");
        Some(ConnectionEnd::by_node("Too many rejected commands", "errors"))
    }

    fn push_reply(&mut self, verb: &'static str, reply: &Reply) {
        metrics::command(verb, reply.code());
        log::debug!(session:% = self.session.handle.id, verb, code = reply.code().value(); "command");
        self.rejected_commands = if reply.code().is_rejection() { self.rejected_commands + 1 } else { 0 };
        self.push(reply);
    }

    /// Sends a reply, and notes it in the dialogue.
    fn push(&mut self, reply: &Reply) {
        let dialogue = &self.session.handle.dialogue;
        if dialogue.is_kept() {
            let mut encoded = Vec::new();
            reply.encode(&mut encoded);
            dialogue.note_reply(&encoded);
        }
        self.stream.push(reply);
    }

    /// Performs the TLS handshake. Discards the state from before it: pipelined lines (CVE-2011-1575) and a
    /// login.
    async fn encrypt(&mut self) -> Result<(), ConnectionEnd> {
        let id = self.session.handle.id;
        let Some(tls) = self.session.node.tls.clone() else { return Err(ConnectionEnd::Silent) };
        match self.stream.encrypt(&tls, id).await {
            Ok(handshake) => {
                log::debug!(
                    session:% = id, version = handshake.version, cipher = handshake.cipher.as_str(),
                    resumed = handshake.resumed.is_some();
                    "TLS handshake completed"
                );
                self.lines.clear();
                self.session.handle.activity.note_tls(handshake.version);
                self.session.handle.set_user(None);
                self.session.note_end("auth_tls");
                self.session.state = LoginState::Greeted;
                // Set only by AUTH TLS-P, because PROT is refused before TLS.
                let is_private = self.session.security.is_private;
                self.session.security =
                    Security { handshake: Some(Box::new(handshake)), is_private, ..Security::default() };
                Ok(())
            }
            Err(error) => {
                if self.may_log("tls_handshake") {
                    log::info!(
                        session:% = id, address:% = self.session.addresses.client.ip();
                        "TLS handshake failed: {error}"
                    );
                }
                Err(ConnectionEnd::ClientGone)
            }
        }
    }

    /// Sends the reply of the ended activity, then its follow-up.
    fn conclude_activity(&mut self, reply: &Reply) -> Option<ConnectionEnd> {
        let ended = std::mem::replace(&mut self.activity, ActivityState::Idle);
        let ActivityState::Running { activity, follow_up } = ended else { return None };
        self.session.handle.activity.end_activity();
        self.push_reply(activity.handle.verb, reply);
        self.last_used = Instant::now();
        match follow_up {
            FollowUp::NextCommand => {}
            FollowUp::AbortReply => {
                self.push_reply("ABOR", &Reply::new(Code::TRANSFER_COMPLETE, "Abort successful"));
            }
            FollowUp::Goodbye => {
                self.push_reply("QUIT", &Reply::goodbye());
                return Some(ConnectionEnd::Silent);
            }
        }
        self.requested_end().or_else(|| self.reached_max_age())
    }

    /// Returns true if `failure_log_limit` permits a log line that any client can cause.
    fn may_log(&self, kind: &'static str) -> bool {
        self.session.node.connection_log.may_log(kind, self.session.addresses.client.ip())
    }
}
