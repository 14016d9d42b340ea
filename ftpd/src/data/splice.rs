//! From a socket to a file inside the kernel, by way of a pipe.

use std::cell::RefCell;
use std::fs::File;
use std::io::Read;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl};
use nix::unistd::pipe2;

use super::progress::Progress;
use super::transfer::{TransferError, check};
use crate::jail::FileError;

/// Bytes: 64 KiB, the usual size, cost a fifth more.
const PIPE: usize = 1024 * 1024;

/// Below this, reading and writing is cheaper. A user who has many pipes gets tiny ones
/// (pipe(7), pipe-user-pages-soft).
const SMALLEST_PIPE: usize = 64 * 1024;

/// How far [`receive`] came.
pub(super) enum Moved {
    /// To the end of the stream.
    All(u64),
    /// These sockets, files or pipes cannot do it; so many bytes are in the file.
    Unable(u64),
}

/// Stores what arrives at `offset` and after.
pub(super) fn receive(
    socket: &TcpStream,
    file: &File,
    offset: u64,
    progress: &Progress,
) -> Result<Moved, TransferError> {
    // A pipe that is not put back, after an error, is closed with what is in it.
    let Some(pipe) = SPARE.take().or_else(|| Pipe::new().ok().flatten()) else {
        return Ok(Moved::Unable(0));
    };
    let mut received = 0;
    loop {
        let wanted = progress.piece(pipe.size)?;
        let flags = SpliceFFlags::SPLICE_F_MOVE;
        let arrived = match nix::fcntl::splice(socket, None, &pipe.write, None, wanted, flags) {
            Ok(0) => {
                progress.note_end();
                break;
            }
            Ok(arrived) => arrived,
            Err(Errno::EINTR) => continue,
            Err(Errno::EINVAL | Errno::ENOSYS) => return Ok(Moved::Unable(received)),
            Err(errno) => return Err(TransferError::of_socket(errno, progress)),
        };
        progress.arrived(arrived as u64)?;
        progress.may_store()?;
        let stored = store(&pipe, file, offset + received, arrived)?;
        received += arrived as u64;
        progress.note_stored(arrived as u64);
        if !stored {
            return Ok(Moved::Unable(received));
        }
    }
    SPARE.set(Some(pipe));
    check(progress)?;
    Ok(Moved::All(received))
}

thread_local! {
    /// Making a pipe of this size costs as much as storing a small file.
    static SPARE: RefCell<Option<Pipe>> = const { RefCell::new(None) };
}

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
}

impl Pipe {
    /// `None` if only one that is too small is to be had.
    fn new() -> Result<Option<Self>, Errno> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        // Refused above the user's limits; then it stays as it is.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE as i32));
        let size = usize::try_from(fcntl(&write, FcntlArg::F_GETPIPE_SZ)?).unwrap_or(0);
        Ok((size >= SMALLEST_PIPE).then_some(Self { read, write, size }))
    }
}

/// Moves `length` bytes from the pipe to the file; says whether `splice` can do it, having done it
/// in any case.
fn store(pipe: &Pipe, file: &File, offset: u64, length: usize) -> Result<bool, FileError> {
    let mut moved = 0;
    while moved < length {
        let mut position = libc::loff_t::try_from(offset + moved as u64).map_err(|_| FileError::TooLarge)?;
        let (rest, flags) = (length - moved, SpliceFFlags::SPLICE_F_MOVE);
        match nix::fcntl::splice(&pipe.read, None, file, Some(&mut position), rest, flags) {
            Ok(0) => return Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into()),
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
