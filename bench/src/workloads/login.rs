//! Workloads that log in: as fast as possible, and at a steady rate.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use super::{Figures, figures};
use crate::{
    client::{Session, other},
    servers::{Meter, Server},
    statistics::percentile,
};

const CLIENTS: usize = 16;
const TIME: Duration = Duration::from_millis(1500);

/// Each client logs in and quits repeatedly, without a pause.
pub(super) fn login(server: &Server, encrypted: bool) -> io::Result<Figures> {
    let endpoint = server.endpoint(encrypted);
    let meter = Meter::start(server)?;
    let end = Instant::now() + TIME;
    let times = clients(|_| {
        let mut times = Vec::new();
        while Instant::now() < end {
            let start = Instant::now();
            Session::login(endpoint)?.quit();
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(times)
    });
    let usage = meter.stop()?;
    Ok(with_latency(figures(&usage, 1e3, times.as_ref().map_or(0, Vec::len) as f64), times?))
}

/// Starts 500 logins per second on a schedule, even if earlier logins are not finished. A latency
/// counts from the planned start, so a stall counts for every login that it delays.
pub(super) fn at_rate(server: &Server, encrypted: bool) -> io::Result<Figures> {
    const RATE: usize = 500;
    const LOGINS: usize = 2 * RATE;
    let endpoint = server.endpoint(encrypted);
    let meter = Meter::start(server)?;
    let started = Instant::now();
    let times = clients(|client| {
        let mut times = Vec::new();
        for number in (client..LOGINS).step_by(CLIENTS) {
            let due = started + Duration::from_secs_f64(number as f64 / RATE as f64);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let session = Session::login(endpoint)?;
            times.push(due.elapsed().as_secs_f64() * 1e3);
            session.quit();
        }
        Ok(times)
    });
    let usage = meter.stop()?;
    Ok(with_latency(figures(&usage, 1e3, LOGINS as f64), times?))
}

fn with_latency(mut figures: Figures, mut times: Vec<f64>) -> Figures {
    for (name, share) in [("p50 ms", 0.5), ("p99 ms", 0.99)] {
        figures.insert(name.to_owned(), percentile(&mut times, share));
    }
    figures
}

/// Runs `work` for each client in its own thread, and returns all results.
fn clients(work: impl Fn(usize) -> io::Result<Vec<f64>> + Sync) -> io::Result<Vec<f64>> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..CLIENTS).map(|client| scope.spawn(move || work(client))).collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().unwrap_or_else(|_| Err(other("a client panicked")))?);
        }
        Ok(all)
    })
}
