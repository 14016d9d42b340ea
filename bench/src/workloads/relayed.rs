//! The workloads `relay-idle` and `relay-busy`: memory and CPU time of ftp-relay with many connections.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit};

use super::{Figures, figures, many::discard_at_rate};
use crate::{
    client::{OpenTransfer, Session, SlowDownload, other},
    files::{self, GIB, LARGE},
    servers::{Meter, Server, Testbed},
};

/// Number of connections; fewer if the limit of open files does not allow the node so many.
const MOST_CONNECTIONS: u64 = 5000;
/// Descriptors of the node that each connection needs: `PER_BUSY_SESSION` of ftpd.
const PER_CONNECTION: u64 = 8;
/// Descriptors of the node for other purposes: passive ports, relayed connections.
const OTHER_DESCRIPTORS: u64 = 5000;
const THREADS: usize = 8;
/// Rate of each download in bytes per second.
const RATE: f64 = 20e3;
/// Time during which CPU time is measured.
const TIME: Duration = Duration::from_secs(10);
/// The helper that is measured.
const RELAY: &str = "balancer";

/// Opens uploads that send nothing.
pub(super) fn idle(testbed: &Testbed, server: &Server) -> io::Result<Figures> {
    let relay = server.helper(RELAY)?;
    let count = connections()?;
    warm_up(server)?;
    let before = relay.memory()?;
    let meter = Meter::start(server)?;
    let open: Vec<OpenTransfer> =
        in_threads(server, count, |number, session| session.begin(&format!("STOR uploads/idle-{number}")))?;
    let usage = meter.stop()?;
    thread::sleep(Duration::from_secs(2));
    let memory = relay.memory()?;
    let (watch, cpu) = (Instant::now(), relay.cpu()?);
    thread::sleep(TIME);
    let idle = (relay.cpu()? - cpu) / watch.elapsed().as_secs_f64();
    drop(open);
    // The node ends these uploads and removes their files.
    thread::sleep(Duration::from_secs(2));
    files::clear_uploads(&testbed.home)?;
    let mut figures = figures(&usage, 1e3, count as f64);
    figures.insert("connections".to_owned(), count as f64);
    figures.insert("PSS KiB".to_owned(), (memory.pss - before.pss) as f64 / count as f64);
    figures.insert("idle CPU ms/s".to_owned(), idle * 1e3);
    Ok(figures)
}

/// Opens downloads and reads them slowly: each socket on the way is full.
pub(super) fn busy(server: &Server) -> io::Result<Figures> {
    let relay = server.helper(RELAY)?;
    let count = connections()?;
    warm_up(server)?;
    let before = relay.memory()?;
    let mut downloads: Vec<SlowDownload> =
        in_threads(server, count, |_, session| session.begin_download(&format!("RETR {LARGE}")))?;
    let received =
        |downloads: &[SlowDownload]| downloads.iter().map(|download| download.received).sum::<u64>();
    let (meter, start) = (Meter::start(server)?, received(&downloads));
    let (started, is_over) = (Instant::now(), AtomicBool::new(false));
    let memory = thread::scope(|scope| {
        let is_over = &is_over;
        let parts = downloads.chunks_mut(count / THREADS);
        let threads: Vec<_> =
            parts.map(|part| scope.spawn(move || discard_at_rate(part, RATE, started, is_over))).collect();
        thread::sleep(TIME / 2);
        let memory = relay.memory();
        thread::sleep(TIME / 2);
        is_over.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| other("a client panicked"))??;
        }
        memory
    })?;
    let usage = meter.stop()?;
    let mut figures = figures(&usage, 1.0, (received(&downloads) - start) as f64 / GIB as f64);
    figures.insert("connections".to_owned(), count as f64);
    figures.insert("PSS KiB".to_owned(), (memory.pss - before.pss) as f64 / count as f64);
    Ok(figures)
}

/// A multiple of `THREADS` above zero.
fn connections() -> io::Result<usize> {
    let (descriptors, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let count = MOST_CONNECTIONS.min(descriptors.saturating_sub(OTHER_DESCRIPTORS) / PER_CONNECTION);
    // The cast is lossless: the value is at most 5,000.
    Ok((count as usize).max(THREADS) / THREADS * THREADS)
}

/// Loads the code and tables that all connections share.
fn warm_up(server: &Server) -> io::Result<()> {
    let mut session = Session::ready(server.endpoint_of_data()?)?;
    session.download(&format!("RETR {LARGE}"), GIB)?;
    session.quit();
    thread::sleep(Duration::from_secs(1));
    Ok(())
}

/// Logs in `count` sessions at the node, and begins a transfer through the relay in each.
fn in_threads<T: Send>(
    server: &Server,
    count: usize,
    begin: impl Fn(usize, Session) -> io::Result<T> + Sync,
) -> io::Result<Vec<T>> {
    let (endpoint, begin) = (server.endpoint_of_data()?, &begin);
    thread::scope(|scope| {
        let share = |thread: usize| {
            let numbers = (thread..count).step_by(THREADS);
            scope.spawn(move || numbers.map(|number| begin(number, Session::ready(endpoint)?)).collect())
        };
        let threads: Vec<_> = (0..THREADS).map(share).collect();
        let mut all = Vec::with_capacity(count);
        for thread in threads {
            let some: io::Result<Vec<T>> = thread.join().map_err(|_| other("a client panicked"))?;
            all.extend(some?);
        }
        Ok(all)
    })
}
