//! Large files, and many small ones.

use std::io;

use super::{Figures, at_once, figures, sessions};
use crate::{
    client::{Session, other, pattern},
    files::{self, GIB, LARGE, MEDIUM, SMALL, SMALL_FILES},
    servers::{Meter, Server, Site},
};

/// How many sessions move small files at once.
const SESSIONS: usize = 8;

/// What one of so many streams moves.
fn file(streams: usize) -> (&'static str, u64) {
    if streams == 1 { (LARGE, GIB) } else { (MEDIUM, GIB / 4) }
}

fn quit(sessions: Vec<Session>) {
    sessions.into_iter().for_each(Session::quit);
}

pub fn retr(server: &Server, encrypted: bool, streams: usize) -> io::Result<Figures> {
    let (name, size) = file(streams);
    let mut sessions = sessions(server, encrypted, streams)?;
    let meter = Meter::start(server)?;
    at_once(&mut sessions, |_, session| session.download(&format!("RETR {name}"), size))?;
    let usage = meter.stop()?;
    quit(sessions);
    Ok(figures(&usage, 1.0, size as f64 * streams as f64 / GIB as f64))
}

pub fn stor(site: &Site, server: &Server, encrypted: bool, streams: usize) -> io::Result<Figures> {
    let (_, size) = file(streams);
    let block = pattern(256 << 10);
    let mut sessions = sessions(server, encrypted, streams)?;
    let meter = Meter::start(server)?;
    at_once(&mut sessions, |i, session| session.upload(&format!("STOR uploads/stream-{i}"), &block, size))?;
    let usage = meter.stop()?;
    quit(sessions);
    files::take_uploads(&site.home, streams, size)?;
    Ok(figures(&usage, 1.0, size as f64 * streams as f64 / GIB as f64))
}

pub fn small_get(server: &Server, encrypted: bool) -> io::Result<Figures> {
    let mut sessions = sessions(server, encrypted, SESSIONS)?;
    let meter = Meter::start(server)?;
    at_once(&mut sessions, |i, session| {
        (i..SMALL_FILES).step_by(SESSIONS).try_for_each(|number| {
            let received = session.read(&format!("RETR {}", files::small(number)), |_| {})?;
            if received.bytes == SMALL { Ok(()) } else { Err(other("a small file has another size")) }
        })
    })?;
    let usage = meter.stop()?;
    quit(sessions);
    Ok(figures(&usage, 1e3, SMALL_FILES as f64))
}

pub fn small_put(site: &Site, server: &Server, encrypted: bool) -> io::Result<Figures> {
    let block = pattern(SMALL as usize);
    let mut sessions = sessions(server, encrypted, SESSIONS)?;
    let meter = Meter::start(server)?;
    at_once(&mut sessions, |i, session| {
        (i..SMALL_FILES)
            .step_by(SESSIONS)
            .try_for_each(|number| session.upload(&format!("STOR uploads/file-{number:05}"), &block, SMALL))
    })?;
    let usage = meter.stop()?;
    quit(sessions);
    files::take_uploads(&site.home, SMALL_FILES, SMALL)?;
    Ok(figures(&usage, 1e3, SMALL_FILES as f64))
}
