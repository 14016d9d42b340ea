//! Directories: one of 10,000 entries, and one of a million.

use std::io;

use super::{Figures, figures};
use crate::{
    client::{Session, other},
    files::{self, ENTRIES, MILLION},
    servers::{Meter, Server, Site},
    statistics::percentile,
};

/// How often a directory is listed in a round.
const TIMES: usize = 5;

pub fn listing(server: &Server, encrypted: bool, verb: &str) -> io::Result<Figures> {
    let mut session = Session::ready(server.target(encrypted))?;
    session.command("CWD entries", 2)?;
    let meter = Meter::start(server)?;
    let mut first = Vec::new();
    for _ in 0..TIMES {
        first.push(read(&mut session, verb, ENTRIES)?);
    }
    let usage = meter.stop()?;
    session.quit();
    let mut figures = figures(&usage, 1e3, TIMES as f64);
    figures.insert("first byte ms".to_owned(), percentile(&mut first, 0.5));
    Ok(figures)
}

/// What a directory that is a hundred times as long costs in memory.
pub fn million(site: &Site, server: &Server, encrypted: bool) -> io::Result<Figures> {
    files::make_million(&site.home)?;
    let mut session = Session::ready(server.target(encrypted))?;
    session.command("CWD entries", 2)?;
    let peak = |session: &mut Session, entries| {
        server.group.forget_peak()?;
        let first = read(session, "LIST", entries)?;
        io::Result::Ok((server.group.memory()?.peak as f64 / 1024.0, first))
    };
    // The first listing also loads what any needs.
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

/// Milliseconds to the first byte of a listing with so many entries.
fn read(session: &mut Session, verb: &str, entries: usize) -> io::Result<f64> {
    let mut lines = 0;
    let received =
        session.read(verb, |bytes| lines += bytes.iter().filter(|byte| **byte == b'\n').count())?;
    // Some list `.` and `..`, or say how many there are.
    if !(entries..=entries + 3).contains(&lines) {
        return Err(other(format!("{verb}: {lines} lines for {entries} entries")));
    }
    Ok(received.first_byte.as_secs_f64() * 1e3)
}
