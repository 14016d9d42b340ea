//! The workload `idle`: memory and CPU time of sessions that do nothing.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit};

use super::{Figures, figures};
use crate::{
    client::{Session, other},
    servers::{Meter, Server},
    statistics::percentile,
};

/// Number of sessions; fewer if the limit of open files does not allow so many.
const MOST_SESSIONS: u64 = 15_000;
/// Descriptors for other purposes than sessions: passive ports, files of threads, libraries.
const OTHER_DESCRIPTORS: u64 = 2_000;
const THREADS: usize = 8;

/// Time during which the CPU time of the idle sessions is measured.
const WATCH_TIME: Duration = Duration::from_secs(5);

/// Opens the sessions and measures the server's memory and CPU time while they are idle.
pub(super) fn sessions(server: &Server, encrypted: bool) -> io::Result<Figures> {
    let endpoint = server.endpoint(encrypted);
    let (descriptors, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let count = MOST_SESSIONS.min(descriptors.saturating_sub(OTHER_DESCRIPTORS));
    // A multiple of `THREADS` above zero. The cast is lossless: the value is at most 15,000.
    let count = (count as usize).max(THREADS) / THREADS * THREADS;
    // The first session loads code and tables that all sessions share.
    Session::login(endpoint)?.quit();
    thread::sleep(Duration::from_secs(1));
    let before = server.group.memory()?;
    let meter = Meter::start(server)?;
    let mut sessions = thread::scope(|scope| {
        let share = |_| scope.spawn(move || (0..count / THREADS).map(|_| Session::login(endpoint)).collect());
        let threads: Vec<_> = (0..THREADS).map(share).collect();
        let mut all = Vec::with_capacity(count);
        for thread in threads {
            let some: io::Result<Vec<Session>> = thread.join().map_err(|_| other("a client panicked"))?;
            all.extend(some?);
        }
        io::Result::Ok(all)
    })?;
    let usage = meter.stop()?;
    thread::sleep(Duration::from_secs(2));
    let memory = server.group.memory()?;
    let watch = Instant::now();
    let cpu = server.group.cpu()?;
    thread::sleep(WATCH_TIME);
    let idle = (server.group.cpu()? - cpu) / watch.elapsed().as_secs_f64();
    let mut noops = Vec::new();
    for session in sessions.iter_mut().step_by(count.div_ceil(500)) {
        let start = Instant::now();
        session.command("NOOP", 2)?;
        noops.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let mut figures = figures(&usage, 1e3, count as f64);
    figures.insert("sessions".to_owned(), count as f64);
    figures.insert("PSS KiB".to_owned(), (memory.pss - before.pss) as f64 / count as f64);
    figures.insert("processes".to_owned(), memory.processes as f64);
    figures.insert("idle CPU ms/s".to_owned(), idle * 1e3);
    figures.insert("NOOP p99 ms".to_owned(), percentile(&mut noops, 0.99));
    Ok(figures)
}
