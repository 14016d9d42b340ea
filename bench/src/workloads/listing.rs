//! Workloads that list directories of 10,000 and of 1,000,000 entries.

use std::io;

use super::{Figures, figures};
use crate::{
    client::{Session, other},
    files::{self, ENTRIES, MILLION},
    servers::{Meter, Server, Testbed},
    statistics::percentile,
};

/// Listings in a round.
const LISTINGS: usize = 5;

/// Lists the directory of 10,000 entries with `verb`.
pub(super) fn listing(server: &Server, encrypted: bool, verb: &str) -> io::Result<Figures> {
    let mut session = Session::ready(server.endpoint(encrypted))?;
    session.command("CWD entries", 2)?;
    let meter = Meter::start(server)?;
    let mut first = Vec::new();
    for _ in 0..LISTINGS {
        first.push(read(&mut session, verb, ENTRIES)?);
    }
    let usage = meter.stop()?;
    session.quit();
    let mut figures = figures(&usage, 1e3, LISTINGS as f64);
    figures.insert("first byte ms".to_owned(), percentile(&mut first, 0.5));
    Ok(figures)
}

/// Compares the server's peak memory for a listing of 1,000,000 entries with that of 10,000 entries.
pub(super) fn million(testbed: &Testbed, server: &Server, encrypted: bool) -> io::Result<Figures> {
    files::make_million(&testbed.home)?;
    let mut session = Session::ready(server.endpoint(encrypted))?;
    session.command("CWD entries", 2)?;
    let peak = |session: &mut Session, entries| {
        server.group.reset_peak()?;
        let first = read(session, "LIST", entries)?;
        io::Result::Ok((server.group.memory()?.peak as f64 / 1024.0, first))
    };
    // A first listing, not counted: it loads code and tables that all listings share.
    peak(&mut session, ENTRIES)?;
    let (short, _) = peak(&mut session, ENTRIES)?;
    session.command("CWD ../million", 2)?;
    let meter = Meter::start(server)?;
    let (long, first) = peak(&mut session, MILLION)?;
    let usage = meter.stop()?;
    session.quit();
    let mut figures = figures(&usage, 1e3, 1.0);
    figures.insert("first byte ms".to_owned(), first);
    figures.insert("peak MiB at 10,000".to_owned(), short);
    figures.insert("peak MiB".to_owned(), long);
    figures.insert("peak growth MiB".to_owned(), long - short);
    Ok(figures)
}

/// Reads a listing of `entries` entries and returns the milliseconds to its first byte.
fn read(session: &mut Session, verb: &str, entries: usize) -> io::Result<f64> {
    let mut lines = 0;
    let received =
        session.read(verb, |bytes| lines += bytes.iter().filter(|byte| **byte == b'\n').count())?;
    // Some servers list `.` and `..`, or add a line with the total.
    if !(entries..=entries + 3).contains(&lines) {
        return Err(other(format!("{verb} sent {lines} lines for {entries} entries")));
    }
    Ok(received.first_byte.as_secs_f64() * 1e3)
}
