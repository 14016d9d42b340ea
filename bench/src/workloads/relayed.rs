//! The workloads `relay-idle` and `relay-busy`: memory and CPU time of ftp-relay with 5,000 connections.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{Figures, figures, many::discard_at_rate};
use crate::{
    client::{OpenTransfer, Session, SlowDownload, other},
    files::{self, GIB, LARGE},
    servers::{Meter, Server, Testbed},
};

const CONNECTIONS: usize = 5000;
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
    warm_up(server)?;
    let before = relay.memory()?;
    let meter = Meter::start(server)?;
    let open: Vec<OpenTransfer> =
        in_threads(server, |number, session| session.begin(&format!("STOR uploads/idle-{number}")))?;
    let usage = meter.stop()?;
    thread::sleep(Duration::from_secs(2));
    let memory = relay.memory()?;
    let (watch, cpu) = (Instant::now(), relay.cpu()?);
    thread::sleep(TIME);
    let idle = (relay.cpu()? - cpu) / watch.elapsed().as_secs_f64();
    drop(open);
    files::clear_uploads(&testbed.home)?;
    let mut figures = figures(&usage, 1e3, CONNECTIONS as f64);
    figures.insert("PSS KiB".to_owned(), (memory.pss - before.pss) as f64 / CONNECTIONS as f64);
    figures.insert("idle CPU ms/s".to_owned(), idle * 1e3);
    Ok(figures)
}

/// Opens downloads and reads them slowly: each socket on the way is full.
pub(super) fn busy(server: &Server) -> io::Result<Figures> {
    let relay = server.helper(RELAY)?;
    warm_up(server)?;
    let before = relay.memory()?;
    let mut downloads: Vec<SlowDownload> =
        in_threads(server, |_, session| session.begin_download(&format!("RETR {LARGE}")))?;
    let received =
        |downloads: &[SlowDownload]| downloads.iter().map(|download| download.received).sum::<u64>();
    let (meter, start) = (Meter::start(server)?, received(&downloads));
    let (started, is_over) = (Instant::now(), AtomicBool::new(false));
    let memory = thread::scope(|scope| {
        let is_over = &is_over;
        let parts = downloads.chunks_mut(CONNECTIONS / THREADS);
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
    figures.insert("PSS KiB".to_owned(), (memory.pss - before.pss) as f64 / CONNECTIONS as f64);
    Ok(figures)
}

/// Loads the code and tables that all connections share.
fn warm_up(server: &Server) -> io::Result<()> {
    let mut session = Session::ready(server.endpoint(false))?;
    session.download(&format!("RETR {LARGE}"), GIB)?;
    session.quit();
    thread::sleep(Duration::from_secs(1));
    Ok(())
}

/// Logs in `CONNECTIONS` sessions and begins a transfer in each.
fn in_threads<T: Send>(
    server: &Server,
    begin: impl Fn(usize, Session) -> io::Result<T> + Sync,
) -> io::Result<Vec<T>> {
    let (endpoint, begin) = (server.endpoint(false), &begin);
    thread::scope(|scope| {
        let share = |thread: usize| {
            let numbers = (thread..CONNECTIONS).step_by(THREADS);
            scope.spawn(move || numbers.map(|number| begin(number, Session::ready(endpoint)?)).collect())
        };
        let threads: Vec<_> = (0..THREADS).map(share).collect();
        let mut all = Vec::with_capacity(CONNECTIONS);
        for thread in threads {
            let some: io::Result<Vec<T>> = thread.join().map_err(|_| other("a client panicked"))?;
            all.extend(some?);
        }
        Ok(all)
    })
}
