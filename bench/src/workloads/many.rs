//! A thousand clients that each take a megabyte a second: whether all get theirs, what a transfer
//! costs in memory, and what a session beside them notices.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{Figures, figures};
use crate::{
    client::{Session, SlowDownload, other},
    files::{GIB, LARGE},
    servers::{Meter, Server},
    statistics::percentile,
};

const DOWNLOADS: usize = 1000;
/// Bytes a second of each.
const RATE: f64 = 1e6;
const TIME: Duration = Duration::from_secs(10);
/// How often a client takes what it may.
const STEP: Duration = Duration::from_millis(50);
const THREADS: usize = 4;

pub fn downloads(server: &Server) -> io::Result<Figures> {
    let target = server.target(false);
    let mut bystander = Session::ready(target)?;
    let mut sessions: Vec<Session> =
        (0..DOWNLOADS).map(|_| Session::ready(target)).collect::<io::Result<_>>()?;
    thread::sleep(Duration::from_secs(1));
    let before = server.group.memory()?;
    let mut downloads: Vec<SlowDownload> = sessions
        .drain(..)
        .map(|session| session.begin_download(&format!("RETR {LARGE}")))
        .collect::<io::Result<_>>()?;
    let meter = Meter::start(server)?;
    // What fills the buffers before the clock starts is nobody's rate.
    let (begin, is_over) = (Instant::now(), AtomicBool::new(false));
    let (memory, mut noops) = thread::scope(|scope| {
        let is_over = &is_over;
        let parts = downloads.chunks_mut(DOWNLOADS / THREADS);
        let threads: Vec<_> = parts.map(|part| scope.spawn(move || take(part, begin, is_over))).collect();
        let mut noops = Vec::new();
        let mut watch = || {
            let mut memory = None;
            while begin.elapsed() < TIME {
                let start = Instant::now();
                bystander.command("NOOP", 2)?;
                noops.push(start.elapsed().as_secs_f64() * 1e3);
                if memory.is_none() && begin.elapsed() > TIME / 2 {
                    memory = Some(server.group.memory()?);
                }
                thread::sleep(Duration::from_millis(5));
            }
            memory.ok_or_else(|| other("there was no time to look at memory"))
        };
        // The threads that download share its CPU, and would be measured instead of the server.
        go_first(true)?;
        let watched = watch();
        go_first(false)?;
        is_over.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| other("a client panicked"))??;
        }
        io::Result::Ok((watched?, noops))
    })?;
    let usage = meter.stop()?;
    let mut rates: Vec<f64> = downloads.iter().map(|d| d.received as f64 / usage.wall / RATE).collect();
    let total = downloads.iter().map(|download| download.received).sum::<u64>() as f64;
    let squares = rates.iter().map(|rate| rate * rate).sum::<f64>();
    // Jain's index: 1 if all got the same.
    let fairness = rates.iter().sum::<f64>().powi(2) / (DOWNLOADS as f64 * squares);
    let mut figures = figures(&usage, 1.0, total / GIB as f64);
    figures.insert("fairness".to_owned(), fairness);
    figures.insert("slowest MB/s".to_owned(), percentile(&mut rates, 0.0));
    figures.insert("NOOP p99 ms".to_owned(), percentile(&mut noops, 0.99));
    figures.insert("PSS KiB per transfer".to_owned(), (memory.pss - before.pss) as f64 / DOWNLOADS as f64);
    Ok(figures)
}

/// Whether this thread runs before all others as soon as it has something to do.
fn go_first(first: bool) -> io::Result<()> {
    let (policy, sched_priority) = if first { (libc::SCHED_FIFO, 1) } else { (libc::SCHED_OTHER, 0) };
    let parameters = libc::sched_param { sched_priority };
    // SAFETY: `parameters` is one valid structure, which is only read; 0 is this thread.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes from each download what its rate allows by now.
fn take(downloads: &mut [SlowDownload], begin: Instant, is_over: &AtomicBool) -> io::Result<()> {
    while !is_over.load(Ordering::Relaxed) {
        let step = Instant::now();
        for download in downloads.iter_mut() {
            let due = (begin.elapsed().as_secs_f64() * RATE) as u64;
            // Less than 16 seconds' bytes.
            let most = due.saturating_sub(download.received) as usize;
            if most > 0 {
                download.take(most)?;
            }
        }
        thread::sleep(STEP.saturating_sub(step.elapsed()));
    }
    Ok(())
}
