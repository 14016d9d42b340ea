//! The loop of one control connection: read a line, run it, answer; go on reading while a
//! transfer runs.

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

use crate::{
    client_address::Ends,
    commands::{self, session_status},
    connections::{Handle, Order, Place},
    control::{Control, Received},
    metrics,
    node::Node,
    protocol::{
        self, AnyTimeCommand, Code, Command, LoggedInCommand, ParseError, Reply, Request,
        line::{Line, LineBuffer, MAX_LINE},
    },
    revocation,
    session::{Outcome, Security, Session, State},
    work::activity::{Activity, CancelledBy},
};

/// Bytes of commands that are read while one is held.
const READ_AHEAD: usize = 2 * MAX_LINE;

/// A client's control connection and all that belongs to it.
pub struct Connection {
    control: Control,
    lines: LineBuffer,
    session: Session,
    activity: Option<Activity>,
    /// A command that came during a transfer and has to wait for its end.
    held: Option<Result<Request, ParseError>>,
    /// ABOR was given: 226 follows the transfer's own reply (RFC 959 section 4.1.3).
    confirm_abort: bool,
    /// QUIT was given during a transfer.
    quit_after: bool,
    /// The time of the last command, or of the end of the last transfer.
    quiet_since: Instant,
    /// The time from which a login is awaited: of the connection, or of REIN.
    login_since: Instant,
    /// Lines that came before the login.
    commands: u32,
    /// Commands rejected in a row. A missing file is no rejection: clients ask for hundreds before
    /// they upload a tree.
    errors: u32,
    /// Keeps the connection in the node's table.
    _place: Place,
}

/// Why a connection ends.
enum End {
    /// The last reply has been said, or none is wanted.
    Silent,
    /// With this reply, and why for the metrics.
    Told(Reply, &'static str),
    /// The client left.
    Gone,
}

impl End {
    fn told(text: &'static str, reason: &'static str) -> Self {
        Self::Told(Reply::new(Code::SERVICE_UNAVAILABLE, text), reason)
    }
}

/// What a connection waits for.
enum Event {
    Received(Received),
    TransferEnded(Reply),
    Ordered,
    Timer,
}

impl Connection {
    pub fn new(stream: TcpStream, node: Arc<Node>, ends: Ends, place: Place) -> Self {
        Self {
            control: Control::new(stream, node.timeouts.reply),
            lines: LineBuffer::new(),
            session: Session {
                handle: Arc::clone(place.handle()),
                node,
                ends,
                state: State::Greeted,
                security: Security::default(),
                failures: 0,
            },
            activity: None,
            held: None,
            confirm_abort: false,
            quit_after: false,
            quiet_since: Instant::now(),
            login_since: Instant::now(),
            commands: 0,
            errors: 0,
            _place: place,
        }
    }

    /// Serves the client until it leaves or has to. `implicit`: TLS begins at once, and data
    /// connections are private from the start.
    pub async fn serve(mut self, implicit: bool) {
        if implicit {
            if Box::pin(self.encrypt()).await.is_err() {
                return;
            }
            self.session.security.has_buffer_size = true;
            self.session.security.is_private = true;
        }
        self.control.push(&Reply::new(Code::READY, self.session.node.greeting.clone()));
        let end = self.converse().await;
        let by = match (&end, self.session.handle.pending()) {
            (End::Gone, _) => CancelledBy::ClientGone,
            (_, Some(Order::End)) => CancelledBy::Administrator,
            (_, Some(Order::Stop)) => CancelledBy::NodeStop,
            (_, Some(Order::Drain | Order::MakeRoom) | None) => CancelledBy::SessionEnd,
        };
        let client_left = matches!(end, End::Gone);
        if let End::Told(reply, reason) = end {
            metrics::session_ended(reason);
            if self.session.is_logged_in() || self.has_room_in_log(reason) {
                log::info!(
                    session:% = self.session.handle.id, address:% = self.session.ends.client.ip(), reason;
                    "session ended by the node"
                );
            }
            self.control.push(&reply);
        }
        if let Some(activity) = self.activity.take() {
            if client_left && activity.asks_for_client {
                see_off(&self.session.handle, activity, self.session.node.timeouts.client_left).await;
            } else {
                activity.watch.cancel(by);
                // The client may be gone already.
                let _ = self.control.flush().await;
                // Its thread may still write: lease and session stay until it has ended.
                activity.end.await;
            }
        }
        if let State::LoggedIn(session) = &self.session.state {
            let subject = &session.identity;
            log::info!(
                session:% = subject.session, user = subject.user.as_str(), address:% = subject.address;
                "session ended"
            );
        }
        self.control.close().await;
    }

    async fn converse(&mut self) -> End {
        let timer = sleep_until(self.deadline());
        tokio::pin!(timer);
        loop {
            if let Some(end) = self.run_lines(timer.as_mut()).await {
                return end;
            }
            if self.control.flush().await.is_err() {
                return End::Gone;
            }
            let end = match self.event(timer.as_mut()).await {
                Event::Received(Received::Bytes) => None,
                Event::Received(Received::Foreign) => Some(self.foreign()),
                Event::Received(Received::End) => Some(End::Gone),
                Event::TransferEnded(reply) => self.transfer_ended(&reply),
                Event::Ordered => self.obey(),
                Event::Timer => {
                    let end = self.timer_fired();
                    timer.as_mut().reset(self.deadline());
                    end
                }
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    async fn event(&mut self, timer: Pin<&mut Sleep>) -> Event {
        // While a command is held no other can run. Commands are read all the same, up to a limit, so that the
        // end of the connection behind them is seen.
        let reading = self.held.is_none() || self.lines.len() < READ_AHEAD;
        let transfer = async {
            match &mut self.activity {
                Some(activity) => activity.end.as_mut().await,
                None => std::future::pending().await,
            }
        };
        let input = async {
            if reading {
                self.control.fill(&mut self.lines).await
            } else {
                self.control.ended().await;
                Received::End
            }
        };
        tokio::select! {
            // A control connection that broke is seen before the end of the transfer.
            biased;
            received = input => Event::Received(received),
            () = self.session.handle.ordered() => Event::Ordered,
            reply = transfer => Event::TransferEnded(reply),
            () = timer => Event::Timer,
        }
    }

    /// Runs the lines that are there, as far as they may run now.
    async fn run_lines(&mut self, mut timer: Pin<&mut Sleep>) -> Option<End> {
        loop {
            let request = match self.held.take() {
                Some(held) => held,
                None => match self.lines.next_line()? {
                    Line::TooLong => Err(ParseError::TooLong),
                    Line::Command(line) => protocol::parse(&line),
                },
            };
            if self.must_wait(&request) {
                self.held = Some(request);
                return None;
            }
            if let Some(end) = self.too_old() {
                return Some(end);
            }
            self.quiet_since = Instant::now();
            let was_logged_in = self.session.is_logged_in();
            if let Some(end) = self.run_line(request).await {
                return Some(end);
            }
            if was_logged_in != self.session.is_logged_in() {
                self.commands = 0;
                self.login_since = Instant::now();
                timer.as_mut().reset(self.deadline());
            }
            if self.control.must_flush() && self.control.flush().await.is_err() {
                return Some(End::Gone);
            }
            if let Some(end) = self.obey() {
                return Some(end);
            }
        }
    }

    /// Whether a command has to wait for the end of the transfer. After ABOR or QUIT every command
    /// does, so that what is owed to the client does not grow.
    fn must_wait(&self, request: &Result<Request, ParseError>) -> bool {
        let Some(activity) = &self.activity else { return false };
        let may_run = |request: &Request| match request.command {
            Command::LoggedIn(LoggedInCommand::Abor) => true,
            _ => request.during_transfer() && !activity.watch.keeps_order(),
        };
        self.confirm_abort || self.quit_after || !request.as_ref().is_ok_and(may_run)
    }

    async fn run_line(&mut self, request: Result<Request, ParseError>) -> Option<End> {
        let limits = self.session.node.limits;
        if !self.session.is_logged_in() {
            self.commands += 1;
            if self.commands > limits.unauthenticated_commands {
                metrics::limit_reached("max_unauthenticated_commands");
                return Some(End::told("Too many commands without a login", "unauthenticated_commands"));
            }
        }
        // RNFR is void unless RNTO comes next, whatever else comes (RFC 959 section 4.1.3).
        if !matches!(&request, Ok(Request { command: Command::LoggedIn(LoggedInCommand::Rnto(_)), .. }))
            && let Some(logged_in) = self.session.logged_in()
        {
            logged_in.rename_from = None;
        }
        let (verb, reply) = match request {
            Ok(request) if self.activity.is_some() => {
                let verb = request.verb.name;
                (verb, self.beside_transfer(&request.command)?)
            }
            Ok(request) => {
                let verb = request.verb.name;
                match self.run_command(request).await {
                    Ok(Outcome::Reply(reply)) => (verb, reply),
                    Ok(Outcome::Start(opening, activity)) => {
                        if activity.asks_for_client {
                            match self.control.descriptor() {
                                Ok(control) => activity.watch.client.watch(control),
                                Err(_) => activity.watch.cancel(CancelledBy::NoDescriptor),
                            }
                        }
                        self.activity = Some(activity);
                        self.errors = 0;
                        if let Some(opening) = opening {
                            self.control.push(&opening);
                        }
                        return None;
                    }
                    Ok(Outcome::Encrypt(reply)) => {
                        self.answer(verb, &reply);
                        return Box::pin(self.encrypt()).await.err();
                    }
                    Ok(Outcome::Close(reply)) => {
                        metrics::command(verb, reply.code());
                        self.control.push(&reply);
                        return Some(End::Silent);
                    }
                    Err(end) => return Some(end),
                }
            }
            Err(error) => match error.reply() {
                Some(reply) => (error.verb().unwrap_or("unknown"), reply),
                None => return Some(self.foreign()),
            },
        };
        self.answer(verb, &reply);
        if self.errors >= limits.errors {
            metrics::limit_reached("max_errors");
            return Some(End::told("Too many rejected commands", "errors"));
        }
        None
    }

    /// Begins TLS. Nothing that was said in the clear counts afterwards: neither lines that were
    /// pipelined after AUTH (CVE-2011-1575) nor a login.
    async fn encrypt(&mut self) -> Result<(), End> {
        let id = self.session.handle.id;
        let Some(tls) = self.session.node.tls.clone() else { return Err(End::Silent) };
        match self.control.encrypt(&tls, id).await {
            Ok(handshake) => {
                log::debug!(
                    session:% = id, version = handshake.version, cipher = handshake.cipher.as_str(),
                    resumed = handshake.resumed.is_some();
                    "encrypted"
                );
                self.lines.clear();
                self.session.handle.set_user(None);
                self.session.state = State::Greeted;
                // Set by AUTH TLS-P: PROT is refused before TLS.
                let is_private = self.session.security.is_private;
                self.session.security =
                    Security { handshake: Some(Box::new(handshake)), is_private, ..Security::default() };
                Ok(())
            }
            Err(error) => {
                if self.has_room_in_log("tls_handshake") {
                    log::info!(
                        session:% = id, address:% = self.session.ends.client.ip();
                        "the TLS handshake failed: {error}"
                    );
                }
                Err(End::Gone)
            }
        }
    }

    fn answer(&mut self, verb: &'static str, reply: &Reply) {
        metrics::command(verb, reply.code());
        log::debug!(session:% = self.session.handle.id, verb, code = reply.code().value(); "command");
        self.errors = if reply.code().is_rejection() { self.errors + 1 } else { 0 };
        self.control.push(reply);
    }

    /// Runs a command to its end, unless the session has to end at once.
    async fn run_command(&mut self, request: Request) -> Result<Outcome, End> {
        let handle = Arc::clone(&self.session.handle);
        let mut execution = // Boxed: an idle session does not pay for what a command needs while it runs.
        Box::pin(commands::run(&mut self.session, request));
        loop {
            tokio::select! {
                biased;
                outcome = &mut execution => return Ok(outcome),
                () = handle.ordered() => {}
            }
            if let Some(end) = at_once(&handle) {
                return Err(end);
            }
        }
    }

    /// Answers what may come during a transfer. `None`: the answer follows the transfer's own.
    fn beside_transfer(&mut self, command: &Command) -> Option<Reply> {
        let activity = self.activity.as_ref()?;
        match command {
            Command::LoggedIn(LoggedInCommand::Abor) => {
                activity.watch.cancel(CancelledBy::Abor);
                self.confirm_abort = true;
                None
            }
            Command::AnyTime(AnyTimeCommand::Quit) => {
                self.quit_after = true;
                None
            }
            Command::AnyTime(AnyTimeCommand::Stat) => {
                Some(session_status(&self.session, Some(&activity.watch)))
            }
            _ => Some(Reply::new(Code::OK, "OK")),
        }
    }

    fn transfer_ended(&mut self, reply: &Reply) -> Option<End> {
        let verb = self.activity.take().map_or("", |activity| activity.watch.verb);
        self.answer(verb, reply);
        self.quiet_since = Instant::now();
        if std::mem::take(&mut self.confirm_abort) {
            self.answer("ABOR", &Reply::new(Code::TRANSFER_COMPLETE, "Abort successful"));
        }
        if self.quit_after {
            self.answer("QUIT", &Reply::new(Code::CLOSING, "Goodbye"));
            return Some(End::Silent);
        }
        self.obey().or_else(|| self.too_old())
    }

    /// Ends a session that has reached `session_max_age`, unless a transfer runs.
    fn too_old(&self) -> Option<End> {
        let is_over = self.activity.is_none() && Instant::now() >= self.old_at()?;
        is_over.then(|| End::told("This session has reached its greatest age; log in again", "max_age"))
    }

    /// The time at which the session reaches `session_max_age`. `None`: there is no such limit, or no session.
    fn old_at(&self) -> Option<Instant> {
        let age = self.session.node.timeouts.session_age?;
        // That of the login, once there was one.
        self.session.is_logged_in().then(|| self.login_since + age)
    }

    /// Ends the session if it was ordered to: at once, or when nothing runs.
    fn obey(&self) -> Option<End> {
        match self.session.handle.pending()? {
            Order::Drain if self.activity.is_some() => None,
            Order::Drain => Some(End::told("This node goes down for maintenance; connect again", "drain")),
            Order::MakeRoom | Order::End | Order::Stop => at_once(&self.session.handle),
        }
    }

    fn deadline(&self) -> Instant {
        let timeouts = &self.session.node.timeouts;
        match (&self.activity, self.session.is_logged_in()) {
            // A transfer has limits of its own; the idle limit runs from its end.
            (Some(_), _) => Instant::now() + timeouts.idle,
            (None, true) => {
                let idle = self.quiet_since + timeouts.idle;
                self.old_at().map_or(idle, |old| old.min(idle))
            }
            (None, false) => self.login_since + timeouts.login,
        }
    }

    fn timer_fired(&self) -> Option<End> {
        if self.deadline() > Instant::now() {
            return None;
        }
        let too_old = self.too_old();
        Some(if let Some(end) = too_old {
            end
        } else if self.session.is_logged_in() {
            End::told("Nothing happened for too long", "idle_timeout")
        } else {
            End::told("The login took too long", "login_timeout")
        })
    }

    /// Whether a line that any client can cause may be written.
    fn has_room_in_log(&self, kind: &'static str) -> bool {
        self.session.node.connection_log.has_room(kind, self.session.ends.client.ip())
    }

    /// Another protocol's client, or a page or mail that makes a victim's client send such lines
    /// (ALPACA, CVE-2021-3618): the connection ends without a word.
    fn foreign(&self) -> End {
        metrics::session_ended("foreign_protocol");
        if self.has_room_in_log("foreign_protocol") {
            log::warn!(
                session:% = self.session.handle.id, address:% = self.session.ends.client.ip();
                "the client speaks another protocol"
            );
        }
        End::Silent
    }
}

/// Lets an upload whose client has left store what is on its way, for a bounded time: see
/// [`crate::work::activity::ActivityHandle::see_off`]. Lease and session stay until it has ended. An order to end the
/// session or the node ends it at once.
async fn see_off(handle: &Handle, mut activity: Activity, silence: Duration) {
    let watch = Arc::clone(&activity.watch);
    let ordered = async {
        loop {
            match handle.pending() {
                Some(Order::End) => return CancelledBy::Administrator,
                Some(Order::Stop) => return CancelledBy::NodeStop,
                // A session that has logged in is not told to make room.
                Some(Order::Drain | Order::MakeRoom) | None => handle.ordered().await,
            }
        }
    };
    let limits = async {
        tokio::select! {
            () = watch.see_off(silence) => {}
            by = ordered => watch.cancel(by),
        }
        // The activity ends soon, and ends this.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        _ = activity.end.as_mut() => {}
        () = limits => {}
    }
}

/// How a session ends that is to end whatever it does.
fn at_once(handle: &Handle) -> Option<End> {
    match (handle.pending()?, handle.revoked()) {
        (Order::Drain, _) => None,
        (Order::MakeRoom, _) => Some(End::told("Too many connections; log in sooner", "made_room")),
        (Order::End, Some(reason)) => Some(End::told(revocation::message(reason), "revoked")),
        (Order::End, None) => Some(End::told("Session ended by the administrator", "ended")),
        (Order::Stop, _) => Some(End::told("This node stops now; connect again", "stop")),
    }
}

/// The last reply to a client whose session is to end at once.
pub fn last_reply(handle: &Handle) -> Option<Reply> {
    match at_once(handle)? {
        End::Told(reply, reason) => {
            metrics::session_ended(reason);
            Some(reply)
        }
        End::Silent | End::Gone => None,
    }
}
