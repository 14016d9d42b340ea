//! Pipes for splice(2), shared by all relayed connections. Only a connection whose bytes are on their way has
//! one.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use common::sync::lock;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    unistd::pipe2,
};

/// Size of a pipe in bytes. The kernel lets an unprivileged user have 64 MiB of pipes (pipe(7),
/// pipe-user-pages-soft), which are `MAX_PIPES` of this size.
const PIPE: usize = 256 * 1024;

/// Smallest useful pipe. Copying is cheaper than a smaller one.
const SMALLEST_PIPE: usize = 64 * 1024;

/// Maximum number of pipes. Further connections copy their bytes.
const MAX_PIPES: usize = 256;

/// Maximum number of idle pipes that are kept open.
const MAX_IDLE: usize = 32;

/// Descriptors that all pipes take together at most.
pub const PIPE_DESCRIPTORS: usize = 2 * MAX_PIPES;

static IDLE: Mutex<Vec<PipeEnds>> = Mutex::new(Vec::new());
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// Set when the kernel refused to splice a socket.
static UNABLE: AtomicBool = AtomicBool::new(false);

struct PipeEnds {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe in use. When it is dropped with bytes in it, it is closed.
pub(super) struct RelayPipe {
    /// `None` only while it is dropped.
    ends: Option<PipeEnds>,
    filled: usize,
}

impl RelayPipe {
    /// An empty pipe. `None` if there are too many, or the kernel gives none of a useful size.
    pub(super) fn take() -> Option<Self> {
        if UNABLE.load(Ordering::Relaxed) {
            return None;
        }
        let idle = lock(&IDLE).pop();
        if let Some(ends) = idle {
            return Some(Self { ends: Some(ends), filled: 0 });
        }
        if OPEN.fetch_add(1, Ordering::Relaxed) < MAX_PIPES
            && let Ok(Some(ends)) = PipeEnds::new()
        {
            return Some(Self { ends: Some(ends), filled: 0 });
        }
        OPEN.fetch_sub(1, Ordering::Relaxed);
        None
    }

    /// The bytes in the pipe.
    pub(super) fn filled(&self) -> usize {
        self.filled
    }

    /// Moves bytes from a non-blocking socket into the pipe. EAGAIN: the socket has none, because the pipe is
    /// empty when this is called. Returns 0 at the end of the stream.
    pub(super) fn fill(&mut self, socket: impl AsFd) -> Result<usize, Errno> {
        debug_assert_eq!(self.filled, 0, "a full pipe gives EAGAIN, too");
        let Some(ends) = &self.ends else { return Err(Errno::EBADF) };
        let moved = splice(socket, None, &ends.write, None, PIPE, flags()).inspect_err(note_unable)?;
        self.filled += moved;
        Ok(moved)
    }

    /// Moves bytes from the pipe to a non-blocking socket. EAGAIN: the socket is full, because the pipe is
    /// not empty when this is called.
    pub(super) fn empty(&mut self, socket: impl AsFd) -> Result<usize, Errno> {
        debug_assert_ne!(self.filled, 0, "an empty pipe gives EAGAIN, too");
        let Some(ends) = &self.ends else { return Err(Errno::EBADF) };
        match splice(&ends.read, None, socket, None, self.filled, flags()).inspect_err(note_unable)? {
            0 => Err(Errno::EPIPE),
            moved => {
                self.filled -= moved;
                Ok(moved)
            }
        }
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}

/// After this, no further pipe is taken, so connections copy their bytes.
fn note_unable(errno: &Errno) {
    if is_unable(*errno) && !UNABLE.swap(true, Ordering::Relaxed) {
        log::warn!("the kernel does not splice sockets ({errno}): relayed connections are copied instead");
    }
}

/// The kernel, or a sandbox, cannot splice.
pub(super) fn is_unable(errno: Errno) -> bool {
    matches!(errno, Errno::EINVAL | Errno::ENOSYS | Errno::EPERM)
}

impl PipeEnds {
    /// `None`: the kernel only gives a pipe that is too small.
    fn new() -> Result<Option<Self>, Errno> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Refused above the user's limit. Then the pipe keeps its size.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE as i32));
        let size = usize::try_from(fcntl(&write, FcntlArg::F_GETPIPE_SZ)?).unwrap_or(0);
        Ok((size >= SMALLEST_PIPE).then_some(Self { read, write }))
    }
}

impl Drop for RelayPipe {
    fn drop(&mut self) {
        let Some(ends) = self.ends.take() else { return };
        if self.filled == 0 {
            let mut idle = lock(&IDLE);
            if idle.len() < MAX_IDLE {
                return idle.push(ends);
            }
        }
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}
