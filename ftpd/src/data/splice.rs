//! Copies from a socket to a file inside the kernel, through a pipe.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl};
use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::pipe2;

use super::copy::CopyJob;
use super::error::CopyError;

/// The size of the pipe in bytes. The default size, 64 KiB, costs a fifth more time.
const PIPE: usize = 1024 * 1024;

/// The smallest useful pipe. Below it, reading and writing is cheaper. A user with many pipes gets tiny ones
/// (pipe(7), pipe-user-pages-soft).
const SMALLEST_PIPE: usize = 64 * 1024;

/// The result of [`receive`].
pub(super) enum Spliced {
    /// All bytes up to the end of the stream.
    All(u64),
    /// The kernel cannot splice here; this many bytes are in the file.
    Unable(u64),
}

/// Stores the bytes that arrive, from `offset` of `file` on.
pub(super) fn receive(
    socket: &TcpStream,
    file: &File,
    offset: u64,
    job: &CopyJob<'_>,
) -> Result<Spliced, CopyError> {
    // After an error, the pipe is closed and not reused, because bytes may be left in it.
    let Some(pipe) = SPARE.take().or_else(|| Pipe::new().ok().flatten()) else {
        return Ok(Spliced::Unable(0));
    };
    let mut received = 0;
    loop {
        let wanted = job.piece(pipe.size)?;
        let flags = SpliceFFlags::SPLICE_F_MOVE;
        let arrived = match nix::fcntl::splice(socket, None, &pipe.write, None, wanted, flags) {
            Ok(0) => match has_unread_bytes(socket) {
                Ok(true) => return Ok(Spliced::Unable(received)),
                Ok(false) => {
                    job.note_end();
                    break;
                }
                Err(errno) => return Err(job.socket_error(errno)),
            },
            Ok(arrived) => arrived,
            Err(Errno::EINTR) => continue,
            Err(Errno::EINVAL | Errno::ENOSYS) => return Ok(Spliced::Unable(received)),
            Err(errno) => return Err(job.socket_error(errno)),
        };
        job.arrived(arrived)?;
        job.check_store()?;
        let stored = store(&pipe, file, offset + received, arrived).map_err(CopyError::Storage)?;
        received += arrived as u64;
        job.note_stored(arrived);
        if !stored {
            return Ok(Spliced::Unable(received));
        }
    }
    SPARE.set(Some(pipe));
    job.check_end()?;
    Ok(Spliced::All(received))
}

/// After splice(2) has returned 0: returns true if this is not the end of the stream. splice passes no urgent
/// data: in front of an urgent byte it returns 0 as soon as the peer has ended its stream. A read passes it.
fn has_unread_bytes(socket: &TcpStream) -> Result<bool, Errno> {
    match recv(socket.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno),
    }
}

thread_local! {
    /// A pipe for the next upload. Making one costs as much as storing a small file.
    static SPARE: RefCell<Option<Pipe>> = const { RefCell::new(None) };
}

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
}

impl Pipe {
    /// Returns `None` if the kernel only gives a pipe that is too small.
    fn new() -> Result<Option<Self>, Errno> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        // Refused above the user's limits. Then the pipe keeps its size.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE as i32));
        let size = usize::try_from(fcntl(&write, FcntlArg::F_GETPIPE_SZ)?).unwrap_or(0);
        Ok((size >= SMALLEST_PIPE).then_some(Self { read, write, size }))
    }
}

/// Moves `length` bytes from the pipe to the file. Returns false if `splice` cannot do it; the bytes are in
/// the file in any case.
fn store(pipe: &Pipe, file: &File, offset: u64, length: usize) -> io::Result<bool> {
    let mut moved = 0;
    while moved < length {
        let mut position = libc::loff_t::try_from(offset + moved as u64).map_err(|_| Errno::EFBIG)?;
        let (rest, flags) = (length - moved, SpliceFFlags::SPLICE_F_MOVE);
        match nix::fcntl::splice(&pipe.read, None, file, Some(&mut position), rest, flags) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => moved += bytes,
            Err(Errno::EINTR) => {}
            Err(Errno::EINVAL | Errno::ENOSYS) => {
                let mut buffer = vec![0; rest];
                File::from(pipe.read.try_clone()?).read_exact(&mut buffer)?;
                file.write_all_at(&buffer, offset + moved as u64)?;
                return Ok(false);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}
