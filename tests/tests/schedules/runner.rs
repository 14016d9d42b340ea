//! Runs one schedule step by step with its writers' sessions, and records their replies in a ledger.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::{Shutdown, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use cluster_tests::{
    dialogue::{self, Dialogue},
    eventually,
    proxy::Connector,
    random::Random,
};

use crate::{
    ledger::{Entry, Operation, Upload},
    model::{Account, Interruption, Schedule, Step, Turn, UploadCommand, Writer},
};

/// Maximum wait for a part to reach the storage. The writer then continues, because the part may never
/// get there.
const PART_WAIT: Duration = Duration::from_millis(300);

/// The home and the sessions of the schedule with one number. The next round's schedule reuses them.
pub(crate) struct Lane {
    pub number: usize,
    /// Connects from a client address that only this lane uses.
    pub connector: Connector,
    pub nodes: Vec<SocketAddr>,
    /// The directory that holds the homes.
    pub storage: PathBuf,
    pub sessions: BTreeMap<Writer, Vec<Dialogue>>,
}

impl Lane {
    /// Name of the user of an account.
    pub(crate) fn user(number: usize, account: Account) -> String {
        match account {
            Account::Direct => format!("direct{number}"),
            Account::Atomic => format!("atomic{number}"),
        }
    }

    /// The home of both accounts.
    pub(crate) fn home(number: usize) -> String {
        format!("home{number}")
    }

    fn session(&mut self, writer: Writer) -> Dialogue {
        if let Some(session) = self.sessions.entry(writer).or_default().pop() {
            return session;
        }
        // Many sessions log in at the same time, so a node may refuse a login because authd is busy.
        eventually("a login to succeed", || {
            let mut session = Dialogue::connect_with(&self.connector, self.nodes[writer.node]);
            session.command(&format!("USER {}", Self::user(self.number, writer.account)), 331);
            session.send("PASS secret");
            let reply = session.reply();
            assert!(matches!(reply.code, 230 | 421), "{reply:?}");
            (reply.code == 230).then(|| {
                session.command("TYPE I", 200);
                session
            })
        })
    }
}

/// A running schedule.
pub(crate) struct Run<'s> {
    schedule: &'s Schedule,
    /// Number of the schedule in the bytes of its uploads.
    tag: u32,
    /// Name of the schedule's directory.
    name: String,
    directory: PathBuf,
    actors: Vec<Actor>,
    random: Random,
    events: usize,
    uploads: u8,
    pub ledger: Vec<Entry>,
}

/// A writer and its connections.
struct Actor {
    writer: Writer,
    session: Option<Dialogue>,
    data: Option<TcpStream>,
    /// Position of the running upload in the ledger.
    upload: Option<usize>,
    pending: Option<Pending>,
}

/// Replies that a writer waits for, with the position of the operation in the ledger.
#[derive(Clone, Copy)]
enum Pending {
    /// 150, or a refusal.
    Begin(usize),
    /// The end of an upload.
    End(usize),
    /// The end of an upload, and ABOR's reply.
    Abort(usize),
    /// RNFR's reply and RNTO's.
    Rename(usize),
    Command(usize),
}

impl<'s> Run<'s> {
    /// Creates the schedule's directory and opens its writers' sessions.
    pub(crate) fn new(lane: &mut Lane, schedule: &'s Schedule, round: u64) -> Self {
        let name = format!("{round}");
        let directory = lane.storage.join(Lane::home(lane.number)).join(&name);
        let deepest = if schedule.is_nested { directory.join("d") } else { directory.clone() };
        fs::create_dir_all(deepest).expect("the storage is writable");
        let actor = |writer: &Writer| Actor {
            writer: *writer,
            session: Some(lane.session(*writer)),
            data: None,
            upload: None,
            pending: None,
        };
        let actors = schedule.writers.iter().map(actor).collect();
        let tag = (round as u32) << 8 | lane.number as u32;
        let random = Random::new(schedule.seed);
        Self { schedule, tag, name, directory, actors, random, events: 0, uploads: 0, ledger: Vec::new() }
    }

    /// Directory of the schedule's files.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs one phase. The node `frozen` does not reply during the phase: its writers send what they can
    /// and read the replies later.
    pub(crate) fn phase(&mut self, number: usize, frozen: Option<usize>) {
        for Turn(steps) in &self.schedule.phases[number] {
            for (actor, step) in steps {
                let is_frozen = frozen == Some(self.actors[*actor].writer.node);
                if !is_frozen {
                    self.read_replies(*actor);
                }
                if self.actors[*actor].pending.is_none() {
                    self.start_step(*actor, *step, is_frozen);
                }
            }
            for (actor, step) in steps {
                if frozen != Some(self.actors[*actor].writer.node) {
                    self.read_replies(*actor);
                    if *step == Step::Part {
                        self.await_part(*actor);
                    }
                }
            }
        }
    }

    /// Ends all uploads, reads all replies and gives the sessions back.
    pub(crate) fn finish(&mut self, lane: &mut Lane) {
        for actor in 0..self.actors.len() {
            self.read_replies(actor);
            self.start_step(actor, Step::End, false);
            self.read_replies(actor);
            let actor = &mut self.actors[actor];
            if let Some(session) = actor.session.take() {
                lane.sessions.entry(actor.writer).or_default().push(session);
            }
        }
    }

    fn event(&mut self) -> usize {
        self.events += 1;
        self.events
    }

    fn record(&mut self, writer: usize, operation: Operation) -> usize {
        let (account, sent_at) = (self.actors[writer].writer.account, self.event());
        self.ledger.push(Entry { writer, account, operation, sent_at, replied: None });
        self.ledger.len() - 1
    }

    fn upload(&mut self, entry: usize) -> &mut Upload {
        match &mut self.ledger[entry].operation {
            Operation::Upload(upload) => upload,
            other => unreachable!("{other:?} is no upload"),
        }
    }

    /// Sends the command or data of a step without waiting for replies. Skips a step that is impossible
    /// after the previous replies.
    fn start_step(&mut self, number: usize, step: Step, is_frozen: bool) {
        let is_writing = self.actors[number].upload.is_some();
        let pending = match step {
            Step::Part if is_writing => return self.send_part(number),
            Step::End if is_writing => self.end(number),
            Step::Interrupt(how) if is_writing => self.interrupt(number, how),
            Step::Part | Step::End | Step::Interrupt(_) => None,
            _ if is_writing || self.actors[number].session.is_none() => None,
            Step::Begin(..) if is_frozen => None,
            Step::Begin(how, name) => Some(self.begin(number, how, name)),
            Step::Delete(name) => Some(self.command(number, "DELE", name, Operation::Delete(name))),
            Step::Remove(name) => Some(self.command(number, "RMD", name, Operation::Remove(name))),
            Step::RemoveAll(name) => Some(self.command(number, "RMDA", name, Operation::RemoveAll(name))),
            Step::Rename(from, to) => Some(self.rename(number, from, to, Operation::Rename(from, to))),
            Step::Move => Some(self.rename(number, "d", "e", Operation::Move)),
        };
        self.actors[number].pending = pending;
    }

    fn session(&mut self, number: usize) -> &mut Dialogue {
        self.actors[number].session.as_mut().expect("a writer without a session skips all steps")
    }

    fn command(&mut self, number: usize, verb: &str, name: &str, operation: Operation) -> Pending {
        let entry = self.record(number, operation);
        let line = format!("{verb} /{}/{name}", self.name);
        self.session(number).send(&line);
        Pending::Command(entry)
    }

    fn rename(&mut self, number: usize, from: &str, to: &str, operation: Operation) -> Pending {
        let entry = self.record(number, operation);
        let directory = &self.name;
        let lines = format!("RNFR /{directory}/{from}\r\nRNTO /{directory}/{to}");
        self.session(number).send(&lines);
        Pending::Rename(entry)
    }

    fn begin(&mut self, number: usize, how: UploadCommand, name: &'static str) -> Pending {
        let most = if self.random.chance(10) { 4000 } else { 200 };
        let length = 16 * (1 + self.random.below(most));
        self.uploads += 1;
        let mut upload = Upload::new(self.tag, self.uploads, name, how, length);
        let path = format!("/{}/{name}", self.name);
        let session = self.session(number);
        if how == UploadCommand::Resume {
            session.send(&format!("SIZE {path}"));
            let reply = session.reply();
            if reply.code == 213 {
                upload.offset = reply.message().parse().expect("a reply 213 contains the size");
            }
        }
        let data = session.epsv();
        let data = session.data_connection(data);
        if upload.offset > 0 {
            session.command(&format!("REST {}", upload.offset), 350);
        }
        let verb = if how == UploadCommand::Append { "APPE" } else { "STOR" };
        self.actors[number].data = Some(data);
        let entry = self.record(number, Operation::Upload(upload));
        self.session(number).send(&format!("{verb} {path}"));
        Pending::Begin(entry)
    }

    /// Sends bytes of the running upload until `length` bytes are sent in total. Errors are ignored: if
    /// the node has ended the transfer, its reply shows it.
    fn send_up_to(&mut self, number: usize, length: usize) {
        let Actor { upload: Some(entry), data: Some(data), .. } = &mut self.actors[number] else { return };
        let Operation::Upload(upload) = &mut self.ledger[*entry].operation else { return };
        let _ = data.write_all(&upload.content[upload.sent()..length]);
        upload.sent.push(length);
    }

    fn send_part(&mut self, number: usize) {
        let Some(entry) = self.actors[number].upload else { return };
        let upload = self.upload(entry);
        let (sent, left) = (upload.sent(), upload.content.len() - upload.sent());
        // At least one byte remains for the last step.
        let part = self.random.below(left.max(1));
        self.send_up_to(number, sent + part);
    }

    fn end(&mut self, number: usize) -> Option<Pending> {
        let entry = self.actors[number].upload?;
        let total = self.upload(entry).content.len();
        self.send_up_to(number, total);
        self.upload(entry).is_ended = true;
        let data = self.actors[number].data.take()?;
        // The node may have closed the connection.
        let _ = data.shutdown(Shutdown::Write);
        Some(Pending::End(entry))
    }

    fn interrupt(&mut self, number: usize, how: Interruption) -> Option<Pending> {
        let entry = self.actors[number].upload?;
        match how {
            Interruption::Reset => {
                dialogue::reset(self.actors[number].data.take()?);
                Some(Pending::End(entry))
            }
            Interruption::Abort => {
                self.session(number).send("ABOR");
                Some(Pending::Abort(entry))
            }
            Interruption::Leave => {
                dialogue::reset(self.actors[number].data.take()?);
                self.actors[number].session = None;
                self.actors[number].upload = None;
                None
            }
        }
    }

    /// Reads the replies that the writer waits for.
    fn read_replies(&mut self, number: usize) {
        let Some(pending) = self.actors[number].pending.take() else { return };
        let code = self.session(number).reply().code;
        let (entry, code) = match pending {
            Pending::Begin(entry) if matches!(code, 125 | 150) => {
                self.upload(entry).has_begun = true;
                self.actors[number].upload = Some(entry);
                return;
            }
            Pending::Begin(entry) => {
                self.actors[number].data = None;
                (entry, code)
            }
            Pending::End(entry) => (entry, code),
            Pending::Abort(entry) => {
                self.session(number).reply();
                self.actors[number].data = None;
                (entry, code)
            }
            Pending::Rename(entry) => (entry, self.session(number).reply().code),
            Pending::Command(entry) => (entry, code),
        };
        self.actors[number].upload = None;
        let when = self.event();
        self.ledger[entry].replied = Some((when, code));
    }

    /// Waits until a file contains the bytes that were sent, for at most [`PART_WAIT`]: the file may have
    /// been removed, or the transfer may have ended.
    fn await_part(&mut self, number: usize) {
        let Some(entry) = self.actors[number].upload else { return };
        let upload = self.upload(entry);
        let sent = &upload.content[..upload.sent()];
        let end = sent[sent.len().saturating_sub(16)..].to_vec();
        let deadline = Instant::now() + PART_WAIT;
        while !end.is_empty() && Instant::now() < deadline {
            if crate::files(&self.directory).any(|(_, content)| content.ends_with(&end)) {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}
