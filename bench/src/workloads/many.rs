//! The workload `many`: 1,000 clients download at 1 MB/s each. It measures fairness, memory per
//! transfer, and the latency of another session.

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
/// Rate of each download in bytes per second.
const RATE: f64 = 1e6;
const TIME: Duration = Duration::from_secs(10);
/// Interval at which each client reads.
const STEP: Duration = Duration::from_millis(50);
const THREADS: usize = 4;

/// Runs the downloads for [`TIME`].
pub(super) fn downloads(server: &Server) -> io::Result<Figures> {
    let endpoint = server.endpoint(false);
    let mut bystander = Session::ready(endpoint)?;
    let mut sessions: Vec<Session> =
        (0..DOWNLOADS).map(|_| Session::ready(endpoint)).collect::<io::Result<_>>()?;
    thread::sleep(Duration::from_secs(1));
    let before = server.group.memory()?;
    let mut downloads: Vec<SlowDownload> = sessions
        .drain(..)
        .map(|session| session.begin_download(&format!("RETR {LARGE}")))
        .collect::<io::Result<_>>()?;
    let meter = Meter::start(server)?;
    // The clock starts here. The node has filled the socket buffers before, which is not counted.
    let (started, is_over) = (Instant::now(), AtomicBool::new(false));
    let (memory, mut noops) = thread::scope(|scope| {
        let is_over = &is_over;
        let parts = downloads.chunks_mut(DOWNLOADS / THREADS);
        let threads: Vec<_> =
            parts.map(|part| scope.spawn(move || discard_at_rate(part, RATE, started, is_over))).collect();
        let mut noops = Vec::new();
        let mut watch = || {
            let mut memory = None;
            while started.elapsed() < TIME {
                let start = Instant::now();
                bystander.command("NOOP", 2)?;
                noops.push(start.elapsed().as_secs_f64() * 1e3);
                if memory.is_none() && started.elapsed() > TIME / 2 {
                    memory = Some(server.group.memory()?);
                }
                thread::sleep(Duration::from_millis(5));
            }
            memory.ok_or_else(|| other("the measurement ended before memory was read"))
        };
        // The downloading threads share this thread's CPU. Without real-time priority their delays
        // would be measured instead of the server's.
        set_realtime_priority(true)?;
        let watched = watch();
        set_realtime_priority(false)?;
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
    // Jain's index: 1 if all downloads have the same rate.
    let fairness = rates.iter().sum::<f64>().powi(2) / (DOWNLOADS as f64 * squares);
    let mut figures = figures(&usage, 1.0, total / GIB as f64);
    figures.insert("fairness".to_owned(), fairness);
    figures.insert("slowest MB/s".to_owned(), percentile(&mut rates, 0.0));
    figures.insert("NOOP p99 ms".to_owned(), percentile(&mut noops, 0.99));
    figures.insert("PSS KiB per transfer".to_owned(), (memory.pss - before.pss) as f64 / DOWNLOADS as f64);
    Ok(figures)
}

/// Gives this thread real-time priority, or takes it away. With it, the thread runs before all others.
fn set_realtime_priority(enable: bool) -> io::Result<()> {
    let (policy, sched_priority) = if enable { (libc::SCHED_FIFO, 1) } else { (libc::SCHED_OTHER, 0) };
    let parameters = libc::sched_param { sched_priority };
    // SAFETY: the kernel only reads `parameters`, which is a valid structure. 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Discards received bytes of each download at `rate` bytes per second until `is_over`.
pub(super) fn discard_at_rate(
    downloads: &mut [SlowDownload],
    rate: f64,
    started: Instant,
    is_over: &AtomicBool,
) -> io::Result<()> {
    while !is_over.load(Ordering::Relaxed) {
        let step = Instant::now();
        for download in downloads.iter_mut() {
            let due = (started.elapsed().as_secs_f64() * rate) as u64;
            // The cast is lossless: the value is less than the bytes of 16 s.
            let most = due.saturating_sub(download.received) as usize;
            if most > 0 {
                download.discard(most)?;
            }
        }
        thread::sleep(STEP.saturating_sub(step.elapsed()));
    }
    Ok(())
}
