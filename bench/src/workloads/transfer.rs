//! Workloads that transfer large files or many small files.

use std::io;

use super::{Figures, figures, run_in_parallel, sessions};
use crate::{
    client::{Session, other, pattern},
    files::{self, GIB, LARGE, MEDIUM, SMALL, SMALL_FILES},
    servers::{Meter, Server, Testbed},
};

/// Number of sessions that transfer small files at the same time.
const SESSIONS: usize = 8;

/// Name and size of the file that each stream transfers, if there are `streams` of them.
fn file_for(streams: usize) -> (&'static str, u64) {
    if streams == 1 { (LARGE, GIB) } else { (MEDIUM, GIB / 4) }
}

fn quit(sessions: Vec<Session>) {
    sessions.into_iter().for_each(Session::quit);
}

/// Downloads a large file in each of `streams` sessions.
pub(super) fn retr(server: &Server, encrypted: bool, streams: usize) -> io::Result<Figures> {
    let (name, size) = file_for(streams);
    let mut sessions = sessions(server, encrypted, streams)?;
    let meter = Meter::start(server)?;
    run_in_parallel(&mut sessions, |_, session| session.download(&format!("RETR {name}"), size))?;
    let usage = meter.stop()?;
    quit(sessions);
    Ok(figures(&usage, 1.0, size as f64 * streams as f64 / GIB as f64))
}

/// Uploads a large file in each of `streams` sessions.
pub(super) fn stor(
    testbed: &Testbed,
    server: &Server,
    encrypted: bool,
    streams: usize,
) -> io::Result<Figures> {
    let (_, size) = file_for(streams);
    let block = pattern(256 << 10);
    let mut sessions = sessions(server, encrypted, streams)?;
    let meter = Meter::start(server)?;
    run_in_parallel(&mut sessions, |i, session| {
        session.upload(&format!("STOR uploads/stream-{i}"), &block, size)
    })?;
    let usage = meter.stop()?;
    quit(sessions);
    files::check_and_remove_uploads(&testbed.home, streams, size)?;
    Ok(figures(&usage, 1.0, size as f64 * streams as f64 / GIB as f64))
}

/// Downloads all small files.
pub(super) fn small_get(server: &Server, encrypted: bool) -> io::Result<Figures> {
    let mut sessions = sessions(server, encrypted, SESSIONS)?;
    let meter = Meter::start(server)?;
    run_in_parallel(&mut sessions, |i, session| {
        (i..SMALL_FILES).step_by(SESSIONS).try_for_each(|number| {
            let received = session.read(&format!("RETR {}", files::small(number)), |_| {})?;
            if received.bytes == SMALL { Ok(()) } else { Err(other("a small file has a wrong size")) }
        })
    })?;
    let usage = meter.stop()?;
    quit(sessions);
    Ok(figures(&usage, 1e3, SMALL_FILES as f64))
}

/// Uploads as many small files.
pub(super) fn small_put(testbed: &Testbed, server: &Server, encrypted: bool) -> io::Result<Figures> {
    let block = pattern(SMALL as usize);
    let mut sessions = sessions(server, encrypted, SESSIONS)?;
    let meter = Meter::start(server)?;
    run_in_parallel(&mut sessions, |i, session| {
        (i..SMALL_FILES)
            .step_by(SESSIONS)
            .try_for_each(|number| session.upload(&format!("STOR uploads/file-{number:05}"), &block, SMALL))
    })?;
    let usage = meter.stop()?;
    quit(sessions);
    files::check_and_remove_uploads(&testbed.home, SMALL_FILES, SMALL)?;
    Ok(figures(&usage, 1e3, SMALL_FILES as f64))
}
