//! Many sessions at once, half of them with TLS, that transfer, list and rename without a pause, and
//! compare every byte.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    content::bytes,
    load_session::{LoadSession, SessionError},
    proxy::Connector,
    random::Random,
    tls::Authority,
};

/// Where sessions connect, and how many.
#[derive(Clone, Debug)]
pub struct LoadBuilder {
    pub control: SocketAddr,
    pub sessions: usize,
    /// Number of the first session. Each number has a directory.
    pub first: usize,
    /// Uploads no empty file. HAProxy 2.6 resets some connections whose clients end them before it has
    /// connected to the node, if they carry no byte: 7 of 1,000.
    pub without_empty_files: bool,
    /// Waiting time of each session between two operations.
    pub pause: Duration,
}

/// A load that runs until [`Load::finish`].
pub struct Load {
    stop: Arc<AtomicBool>,
    operations: Arc<AtomicUsize>,
    sessions: Vec<JoinHandle<Worker>>,
}

/// Result of a load.
#[derive(Debug, Default)]
pub struct LoadReport {
    /// Number of operations that succeeded.
    pub operations: usize,
    /// Operations that failed, in the order of their times.
    pub failures: Vec<LoadFailure>,
}

/// A failed operation.
#[derive(Debug)]
pub struct LoadFailure {
    pub time: Instant,
    /// The node of the session, from its greeting. Empty if the session got no greeting.
    pub node: String,
    /// The control connection was lost or ended by the node, so the client had to connect again.
    pub is_lost: bool,
    pub what: String,
}

/// A file of a session, and the content that it must have.
#[derive(Clone, Debug)]
struct KnownFile {
    name: String,
    content: Arc<Vec<u8>>,
}

/// The client of one session after another, in a directory of its own.
struct Worker {
    number: usize,
    authority: Option<Arc<Authority>>,
    builder: LoadBuilder,
    random: Random,
    files: Vec<KnownFile>,
    /// The files of sessions that were lost. They are compared at the end, and not used again: the lease of
    /// the last rename is released after its reply, and if the node is killed between, the lease lasts for a
    /// `node_lease`.
    files_of_lost_sessions: Vec<KnownFile>,
    /// Number of files that the client has created.
    created: usize,
    operations: Arc<AtomicUsize>,
    failures: Vec<LoadFailure>,
}

impl LoadBuilder {
    /// Starts the sessions: those with an odd number use FTP, the others FTPS with certificates of
    /// `authority`.
    pub fn start(&self, authority: &Arc<Authority>) -> Load {
        let (stop, operations) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let sessions = (self.first..self.first + self.sessions).map(|number| {
            let mut worker = Worker {
                number,
                authority: (number % 2 == 0).then(|| Arc::clone(authority)),
                builder: self.clone(),
                random: Random::new(number as u64),
                files: Vec::new(),
                files_of_lost_sessions: Vec::new(),
                created: 0,
                operations: Arc::clone(&operations),
                failures: Vec::new(),
            };
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                worker.run(&stop);
                worker
            })
        });
        let sessions = sessions.collect();
        Load { stop, operations, sessions }
    }
}

impl Load {
    /// Number of operations that have succeeded so far.
    pub fn operations(&self) -> usize {
        self.operations.load(Ordering::Relaxed)
    }

    /// Ends the sessions and checks the content of all files in `home`.
    ///
    /// # Panics
    /// A file has wrong content.
    pub fn finish(self, home: &Path) -> LoadReport {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = LoadReport::default();
        for session in self.sessions {
            let worker = session.join().expect("a session of the load does not panic");
            worker.check_files(home);
            report.failures.extend(worker.failures);
        }
        report.operations = self.operations.load(Ordering::Relaxed);
        report.failures.sort_by_key(|failure| failure.time);
        report
    }
}

impl LoadReport {
    /// # Panics
    /// An operation has failed.
    pub fn expect_no_failure(&self) {
        assert!(self.failures.is_empty(), "{} operations succeeded; {:#?}", self.operations, self.failures);
    }
}

impl Worker {
    fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let mut session = match self.connect() {
                Ok(session) => session,
                Err(error) => {
                    self.fail("", error);
                    // A client that cannot connect tries again soon.
                    thread::sleep(Duration::from_millis(200));
                    continue;
                }
            };
            let result = self.serve(&mut session, stop);
            let result = result.and_then(|()| session.quit());
            if let Err(error) = result {
                self.fail(&session.node, error);
                self.files_of_lost_sessions.append(&mut self.files);
            }
        }
    }

    fn connect(&self) -> Result<LoadSession, SessionError> {
        let tls = self.authority.as_ref().map(|authority| authority.client());
        let mut session = LoadSession::connect(&Connector::new(), self.builder.control, tls)?;
        session.login("demo", "secret")?;
        let directory = self.directory();
        match session.exchange(&format!("MKD {directory}"))?.code {
            257 | 550 => session.command(&format!("CWD {directory}"), 250)?,
            _ => return Err(SessionError::lost("MKD failed")),
        };
        Ok(session)
    }

    /// Performs operations until the load ends or the control connection is lost.
    fn serve(&mut self, session: &mut LoadSession, stop: &AtomicBool) -> Result<(), SessionError> {
        while !stop.load(Ordering::Relaxed) {
            match self.operate(session) {
                Ok(()) => _ = self.operations.fetch_add(1, Ordering::Relaxed),
                Err(error) if error.is_lost => return Err(error),
                Err(error) => self.fail(&session.node, error),
            }
            thread::sleep(self.builder.pause);
        }
        Ok(())
    }

    fn fail(&mut self, node: &str, error: SessionError) {
        let (node, time) = (node.to_owned(), Instant::now());
        let what = format!("session {}: {}", self.number, error.what);
        self.failures.push(LoadFailure { time, node, is_lost: error.is_lost, what });
    }

    fn directory(&self) -> String {
        format!("load-{}", self.number)
    }

    /// Performs one operation. A file whose state is unknown after an error is not used again.
    fn operate(&mut self, session: &mut LoadSession) -> Result<(), SessionError> {
        if self.files.len() < 2 {
            return self.store(session);
        }
        match self.random.below(10) {
            0..3 => self.store(session),
            3..5 => self.retrieve(session),
            5 => self.store_in_two_parts(session),
            6 => self.list(session, "LIST"),
            7 => self.list(session, "MLSD"),
            8 => self.rename(session),
            _ if self.files.len() > 6 => self.delete(session),
            _ => self.retrieve(session),
        }
    }

    fn new_file(&mut self) -> KnownFile {
        self.created += 1;
        let largest = self.random.weighted(&[(1, 1), (10, 4 << 10), (6, 100 << 10), (2, 1500 << 10)]);
        // Two bytes, so that neither part of an upload in two parts is empty.
        let smallest = if self.builder.without_empty_files { 2 } else { 0 };
        let content = bytes(self.random.number(), smallest + self.random.below(largest));
        KnownFile { name: format!("file-{}", self.created), content: Arc::new(content) }
    }

    fn take_file(&mut self) -> KnownFile {
        let position = self.random.below(self.files.len());
        self.files.swap_remove(position)
    }

    /// Uploads a new file, or new content of an old one.
    fn store(&mut self, session: &mut LoadSession) -> Result<(), SessionError> {
        let mut file = self.new_file();
        if self.files.len() > 3 && self.random.chance(30) {
            file.name = self.take_file().name;
        }
        session.transmit(&format!("STOR {}", file.name), &file.content)?;
        self.files.push(file);
        Ok(())
    }

    /// Uploads the first part of a file, and the rest with REST.
    fn store_in_two_parts(&mut self, session: &mut LoadSession) -> Result<(), SessionError> {
        let file = self.new_file();
        let middle = file.content.len() / 2;
        session.transmit(&format!("STOR {}", file.name), &file.content[..middle])?;
        session.command(&format!("REST {middle}"), 350)?;
        session.transmit(&format!("STOR {}", file.name), &file.content[middle..])?;
        self.files.push(file);
        Ok(())
    }

    /// Downloads a file, or the part from a REST offset.
    fn retrieve(&mut self, session: &mut LoadSession) -> Result<(), SessionError> {
        let file = self.files[self.random.below(self.files.len())].clone();
        let offset = if self.random.chance(50) { self.random.below(file.content.len() + 1) } else { 0 };
        if offset > 0 {
            session.command(&format!("REST {offset}"), 350)?;
        }
        let received = session.receive(&format!("RETR {}", file.name))?;
        if received != file.content[offset..] {
            let (count, length) = (received.len(), file.content.len());
            let what = format!("{}: {count} wrong bytes from {offset} of {length}", file.name);
            return Err(SessionError::failed(what));
        }
        Ok(())
    }

    /// Checks that a listing names each file once, and its size.
    fn list(&mut self, session: &mut LoadSession, command: &str) -> Result<(), SessionError> {
        let listing = session.receive(command)?;
        let listing = String::from_utf8_lossy(&listing).to_lowercase();
        let missing = self.files.iter().find(|file| {
            let end = format!(" {}", file.name);
            let size = file.content.len();
            let mut lines = listing.lines().filter(|line| line.ends_with(&end));
            let is_right = lines.next().is_some_and(|line| {
                line.contains(&format!("size={size};")) || line.contains(&format!(" {size} "))
            });
            !is_right || lines.next().is_some()
        });
        match missing {
            None => Ok(()),
            Some(file) => {
                let size = file.content.len();
                Err(SessionError::failed(format!(
                    "{command}: no {} of {size} bytes in\n{listing}",
                    file.name
                )))
            }
        }
    }

    fn rename(&mut self, session: &mut LoadSession) -> Result<(), SessionError> {
        let mut file = self.take_file();
        self.created += 1;
        let name = format!("renamed-{}", self.created);
        session.command(&format!("RNFR {}", file.name), 350)?;
        session.command(&format!("RNTO {name}"), 250)?;
        file.name = name;
        self.files.push(file);
        Ok(())
    }

    fn delete(&mut self, session: &mut LoadSession) -> Result<(), SessionError> {
        let file = self.take_file();
        session.command(&format!("DELE {}", file.name), 250)?;
        Ok(())
    }

    fn check_files(&self, home: &Path) {
        let directory: PathBuf = home.join(self.directory());
        for file in self.files.iter().chain(&self.files_of_lost_sessions) {
            let path = directory.join(&file.name);
            let stored = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let (count, length) = (stored.len(), file.content.len());
            assert!(stored == *file.content, "{}: {count} bytes, sent {length}", path.display());
        }
    }
}
