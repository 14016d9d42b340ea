//! Clients that run random commands on a tree that they share.

use std::{
    io::Write,
    net::Shutdown,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use cluster_tests::{content::bytes, dialogue::Dialogue, eventually, random::Random};

/// Top-level directories. Two clients never work in the same one at the same time: the trail then has the
/// order of all operations that depend on each other.
const ZONES: usize = 12;

/// Usual names of files. Few, so that names are often taken.
const FILES: [&[u8]; 4] = [b"a", b"c.txt", b"\xff\xfe", b"with space"];

/// Usual names of directories.
const DIRECTORIES: [&[u8]; 2] = [b"d", "gr\u{fc}n".as_bytes()];

/// The directories, and the number of operations so far.
pub(crate) struct Ground {
    zones: [Mutex<()>; ZONES],
    operations: AtomicUsize,
    wanted: usize,
}

/// Commands that a client runs.
#[derive(Clone, Copy)]
enum Step {
    Store,
    StoreUnique,
    Resume,
    Append,
    Abort,
    Retrieve,
    Rename,
    Delete,
    MakeDirectory,
    RemoveDirectory,
    RemoveTree,
    Combine,
    Mode,
    Time,
}

/// Each step, with its weight.
const STEPS: [(usize, Step); 14] = [
    (28, Step::Store),
    (3, Step::StoreUnique),
    (5, Step::Resume),
    (7, Step::Append),
    (3, Step::Abort),
    (4, Step::Retrieve),
    (14, Step::Rename),
    (10, Step::Delete),
    (12, Step::MakeDirectory),
    (4, Step::RemoveDirectory),
    (1, Step::RemoveTree),
    (3, Step::Combine),
    (3, Step::Mode),
    (3, Step::Time),
];

impl Ground {
    pub(crate) fn new(wanted: usize) -> Self {
        Self { zones: [const { Mutex::new(()) }; ZONES], operations: AtomicUsize::new(0), wanted }
    }

    /// Makes the top-level directories.
    pub(crate) fn prepare(&self, session: &mut Dialogue) {
        for zone in 0..ZONES {
            session.command(&format!("MKD /z{zone}"), 257);
        }
    }

    /// Returns false once all operations are taken.
    fn take(&self) -> bool {
        self.operations.fetch_add(1, Ordering::Relaxed) < self.wanted
    }

    /// Two different zones, locked in their order.
    fn two(&self, random: &mut Random) -> ((usize, usize), [MutexGuard<'_, ()>; 2]) {
        let first = random.below(ZONES);
        let second = (first + 1 + random.below(ZONES - 1)) % ZONES;
        let guards = [first.min(second), first.max(second)].map(|zone| self.lock(zone));
        ((first, second), guards)
    }

    fn lock(&self, zone: usize) -> MutexGuard<'_, ()> {
        self.zones[zone].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs operations until all are taken. Returns the contents that the client sent, in order. With `is_atomic`
/// the user uploads in atomic mode: such a client breaks no upload off, because the rest of one is in a
/// hidden file, which the trail does not show.
pub(crate) fn run(ground: &Ground, session: &mut Dialogue, is_atomic: bool, seed: u64) -> Vec<Vec<u8>> {
    let mut random = Random::new(seed);
    let mut sent = Vec::new();
    session.command("TYPE I", 200);
    while ground.take() {
        let (zones, _guards) = ground.two(&mut random);
        let step = match random.weighted(&STEPS) {
            Step::Resume | Step::Abort if is_atomic => Step::Store,
            step => step,
        };
        run_step(session, step, &mut random, zones, &mut sent);
    }
    sent
}

fn run_step(
    session: &mut Dialogue,
    step: Step,
    random: &mut Random,
    zones: (usize, usize),
    sent: &mut Vec<Vec<u8>>,
) {
    let names_directory =
        matches!(step, Step::MakeDirectory | Step::RemoveDirectory | Step::RemoveTree) || random.chance(15);
    let mut path = |zone: usize| {
        let above = random.weighted(&[(6, 0), (3, 1), (1, 2)]);
        let mut path = format!("/z{zone}").into_bytes();
        for _ in 0..above {
            path.push(b'/');
            path.extend_from_slice(random.choose(&DIRECTORIES));
        }
        path.push(b'/');
        path.extend_from_slice(if names_directory {
            random.choose(&DIRECTORIES)
        } else {
            random.choose(&FILES)
        });
        path
    };
    let (one, other) = (path(zones.0), path(zones.1));
    let near = path(zones.0);
    let length = random.weighted(&[(1, 1), (8, 3000), (1, 60_000)]);
    let content = bytes(random.number(), random.below(length));
    match step {
        Step::Store => upload(session, b"STOR ", &one, content, sent),
        Step::StoreUnique => upload(session, b"STOU ", &one, content, sent),
        Step::Append => upload(session, b"APPE ", &one, content, sent),
        Step::Resume => {
            session.send_bytes(&[b"SIZE ", &*one, b"\r\n"].concat());
            let reply = session.reply();
            let size: usize = if reply.code == 213 { reply.message().parse().unwrap() } else { 0 };
            session.command(&format!("REST {}", random.below(size + 1)), 350);
            upload(session, b"STOR ", &one, content, sent);
        }
        Step::Abort => abort(session, &one, bytes(random.number(), 40_000), sent),
        Step::Retrieve => {
            let address = session.epsv();
            let data = session.data_connection(address);
            if say(session, b"RETR ", &one) == 150 {
                session.finish_download(data);
            }
        }
        Step::Rename => {
            let to = if random.chance(50) { &near } else { &other };
            if say(session, b"RNFR ", &one) == 350 {
                say(session, b"RNTO ", to);
            }
        }
        Step::Delete => drop(say(session, b"DELE ", &one)),
        Step::MakeDirectory => drop(say(session, b"MKD ", &one)),
        Step::RemoveDirectory => drop(say(session, b"RMD ", &one)),
        Step::RemoveTree => drop(say(session, b"RMDA ", &one)),
        Step::Combine => {
            let quoted = |path: &[u8]| [b"\"", path, b"\""].concat();
            let arguments = [quoted(&one), quoted(&near), quoted(&other)].join(&b' ');
            say(session, b"COMB ", &arguments);
        }
        Step::Mode => drop(say(session, b"SITE CHMOD u+rwx,g-w ", &one)),
        Step::Time => drop(say(session, b"MFMT 20260102030405 ", &one)),
    }
}

/// Sends a command, and returns the code of its reply.
fn say(session: &mut Dialogue, verb: &[u8], argument: &[u8]) -> u16 {
    session.send_bytes(&[verb, argument, b"\r\n"].concat());
    session.reply().code
}

/// Uploads `content`, if the node takes it.
fn upload(session: &mut Dialogue, verb: &[u8], path: &[u8], content: Vec<u8>, sent: &mut Vec<Vec<u8>>) {
    let address = session.epsv();
    let mut data = session.data_connection(address);
    if say(session, verb, path) == 150 {
        data.write_all(&content).unwrap();
        data.shutdown(Shutdown::Write).unwrap();
        session.reply();
    }
    sent.push(content);
}

/// Begins an upload, and aborts it after half of `content`.
fn abort(session: &mut Dialogue, path: &[u8], content: Vec<u8>, sent: &mut Vec<Vec<u8>>) {
    let address = session.epsv();
    let mut data = session.data_connection(address);
    if say(session, b"STOR ", path) == 150 {
        data.write_all(&content[..content.len() / 2]).unwrap();
        eventually("some bytes are stored", || {
            let status = session.command("STAT", 211).text();
            (!status.contains("STOR: 0 bytes")).then_some(())
        });
        session.send("ABOR");
        session.reply();
        session.expect(226);
    }
    sent.push(content);
}
