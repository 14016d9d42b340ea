//! One direction of a relayed connection: bytes through a pipe in the kernel, or copied.

use std::{
    cell::RefCell,
    io::{self, ErrorKind},
    net::Shutdown,
    os::fd::AsRawFd,
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv, send},
};
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use super::{
    ends::{StreamEnd, stream_end},
    pipes::{self, RelayPipe},
};

/// Bytes copied at once while few arrive. Up to this length copying costs no more than a pipe.
const FEW: usize = 16 * 1024;

/// Bytes copied at once while many arrive and no pipe can be had.
const MANY: usize = 64 * 1024;

/// Number of reads and writes before another connection may run.
const ROUNDS: usize = 32;

/// Bytes after which the metric is raised during the transfer.
const REPORT: u64 = 16 * 1024 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; MANY].into());
}

/// A direction between two sockets.
pub(super) struct Flow {
    state: FlowState,
    /// Holds bytes that the destination has not taken yet, or is about to.
    pipe: Option<RelayPipe>,
    may_splice: bool,
    /// The last read got many bytes.
    is_bulk: bool,
    moved: u64,
    reported: u64,
    report: fn(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlowState {
    Open,
    /// The source has ended its stream. Bytes may be left in the pipe.
    ReadToEnd,
    /// The end was passed on, after all bytes.
    Ended,
}

/// The event that a flow waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// The source has no bytes.
    Source,
    /// The destination is full.
    Destination,
    /// The flow has ended.
    Nothing,
    /// The flow has used its turn.
    Turn,
}

/// The reason why a flow cannot go on.
#[derive(Debug)]
pub(super) enum Broken {
    Source(io::Error),
    Destination(io::Error),
}

/// The result of one read or write.
enum Round {
    Moved,
    Waits(Want),
}

impl Flow {
    pub(super) fn new(may_splice: bool, report: fn(u64)) -> Self {
        let state = FlowState::Open;
        Self { state, pipe: None, may_splice, is_bulk: false, moved: 0, reported: 0, report }
    }

    /// The bytes that the destination has taken.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// The source has ended its stream in an orderly way.
    pub(super) fn is_read_to_end(&self) -> bool {
        self.state != FlowState::Open
    }

    /// The end of the source's stream was passed on.
    pub(super) fn has_ended(&self) -> bool {
        self.state == FlowState::Ended
    }

    /// Moves bytes until a socket blocks, the stream ends, or the turn is over. `is_end_certain`: a read of 0
    /// bytes is certainly the orderly end, see [`stream_end`].
    pub(super) fn step(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        is_end_certain: bool,
    ) -> Result<Want, Broken> {
        for _ in 0..ROUNDS {
            match self.round(from, to, is_end_certain)? {
                Round::Moved => {}
                Round::Waits(want) => return Ok(want),
            }
        }
        Ok(Want::Turn)
    }

    fn round(&mut self, from: &TcpStream, to: &TcpStream, is_end_certain: bool) -> Result<Round, Broken> {
        if let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.filled() > 0) {
            return match to.try_io(Interest::WRITABLE, || Ok(pipe.empty(to)?)) {
                Ok(moved) => Ok(self.note(moved)),
                Err(error) => blocked(error, Want::Destination).map_err(Broken::Destination),
            };
        }
        match self.state {
            FlowState::Open => {}
            FlowState::ReadToEnd => {
                self.pipe = None;
                SockRef::from(to).shutdown(Shutdown::Write).map_err(Broken::Destination)?;
                self.state = FlowState::Ended;
                return Ok(Round::Waits(Want::Nothing));
            }
            FlowState::Ended => return Ok(Round::Waits(Want::Nothing)),
        }
        if !self.is_bulk {
            self.pipe = None;
        } else if self.pipe.is_none() && self.may_splice {
            self.pipe = RelayPipe::take();
        }
        let Some(pipe) = &mut self.pipe else { return self.copy(from, to, is_end_certain) };
        match from.try_io(Interest::READABLE, || fill(pipe, from)) {
            Ok(0) => self.end(from, is_end_certain),
            Ok(filled) => {
                self.is_bulk = filled > FEW;
                Ok(Round::Moved)
            }
            Err(error) if error.raw_os_error().is_some_and(|e| pipes::is_unable(Errno::from_raw(e))) => {
                (self.pipe, self.may_splice) = (None, false);
                Ok(Round::Moved)
            }
            Err(error) => {
                if error.kind() == ErrorKind::WouldBlock {
                    self.pipe = None;
                }
                blocked(error, Want::Source).map_err(Broken::Source)
            }
        }
    }

    /// Copies bytes. They stay in the source's socket until the destination has taken them, so a connection
    /// that waits has no buffer.
    fn copy(&mut self, from: &TcpStream, to: &TcpStream, is_end_certain: bool) -> Result<Round, Broken> {
        BUFFER.with_borrow_mut(|buffer| {
            let buffer = if self.is_bulk { &mut buffer[..] } else { &mut buffer[..FEW] };
            let (source, flags) = (from.as_raw_fd(), MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
            let peek =
                from.try_io(Interest::READABLE, || Ok(recv(source, buffer, flags | MsgFlags::MSG_PEEK)?));
            let seen = match peek {
                Ok(0) => return self.end(from, is_end_certain),
                Ok(seen) => seen,
                Err(error) => return blocked(error, Want::Source).map_err(Broken::Source),
            };
            let sent =
                match to.try_io(Interest::WRITABLE, || Ok(send(to.as_raw_fd(), &buffer[..seen], flags)?)) {
                    Ok(sent) => sent,
                    Err(error) => return blocked(error, Want::Destination).map_err(Broken::Destination),
                };
            self.is_bulk = seen == buffer.len();
            discard(source, buffer, sent).map_err(Broken::Source)?;
            Ok(self.note(sent))
        })
    }

    fn end(&mut self, from: &TcpStream, is_end_certain: bool) -> Result<Round, Broken> {
        match stream_end(from, is_end_certain) {
            StreamEnd::Orderly => self.state = FlowState::ReadToEnd,
            StreamEnd::OrderlyThenReset => {
                self.state = FlowState::ReadToEnd;
                return Err(Broken::Source(ErrorKind::BrokenPipe.into()));
            }
            StreamEnd::Reset => return Err(Broken::Source(ErrorKind::ConnectionReset.into())),
        }
        Ok(Round::Moved)
    }

    fn note(&mut self, moved: usize) -> Round {
        self.moved += moved as u64;
        if self.moved - self.reported >= REPORT {
            self.report();
        }
        Round::Moved
    }

    fn report(&mut self) {
        (self.report)(self.moved - self.reported);
        self.reported = self.moved;
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.report();
    }
}

/// Moves bytes from the socket into the empty pipe. The error is EINVAL if only copying can go on.
///
/// splice(2) does not get past urgent data: before it, splice fails with EAGAIN as if no bytes had arrived,
/// and after FIN it even returns 0 as if all bytes were read. recv(2) can tell.
fn fill(pipe: &mut RelayPipe, from: &TcpStream) -> io::Result<usize> {
    let got_nothing = |filled: &Result<usize, Errno>| matches!(filled, Ok(0) | Err(Errno::EAGAIN));
    let mut filled = pipe.fill(from);
    if got_nothing(&filled) && has_bytes(from)? {
        // The bytes may have arrived after the first attempt.
        filled = pipe.fill(from);
        if got_nothing(&filled) {
            return Err(Errno::EINVAL.into());
        }
    }
    Ok(filled?)
}

/// An error of the connection must not be dropped here, because the kernel reports it once.
fn has_bytes(from: &TcpStream) -> Result<bool, Errno> {
    match recv(from.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK) {
        Ok(seen) => Ok(seen > 0),
        Err(Errno::EAGAIN) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Takes `count` bytes that were peeked out of the socket. The kernel copies nothing (tcp(7), MSG_TRUNC).
fn discard(socket: i32, buffer: &mut [u8], mut count: usize) -> io::Result<()> {
    while count > 0 {
        match recv(socket, &mut buffer[..count], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(taken) => count -= taken,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// The meaning of an error of a non-blocking call.
fn blocked(error: io::Error, want: Want) -> io::Result<Round> {
    match error.kind() {
        ErrorKind::WouldBlock => Ok(Round::Waits(want)),
        ErrorKind::Interrupted => Ok(Round::Moved),
        _ => Err(error),
    }
}
