//! The programs that run for events: they end with the deliverer, before another node may begin to deliver.

use std::{
    io::{self, PipeReader, PipeWriter},
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, mpsc},
    time::Duration,
};

/// The programs of one deliverer.
pub(super) struct Programs {
    /// When it is closed, all programs are killed.
    stop: PipeWriter,
    /// Disconnected when no program runs.
    ended: mpsc::Receiver<()>,
    handle: ProgramsHandle,
}

/// What each program's thread holds while its program runs.
#[derive(Clone, Debug)]
pub(super) struct ProgramsHandle {
    stopping: Arc<PipeReader>,
    _running: mpsc::Sender<()>,
}

impl Programs {
    pub(super) fn new() -> io::Result<Self> {
        let (stopping, stop) = io::pipe()?;
        let (running, ended) = mpsc::channel();
        let handle = ProgramsHandle { stopping: Arc::new(stopping), _running: running };
        Ok(Self { stop, ended, handle })
    }

    pub(super) fn handle(&self) -> ProgramsHandle {
        self.handle.clone()
    }

    /// Kills the programs and waits until they have ended, at most for `time`. The deliverer must have
    /// dropped its handles. Blocks.
    pub(super) fn stop(self, time: Duration) {
        let Self { stop, ended, handle } = self;
        drop((stop, handle));
        if ended.recv_timeout(time) == Err(mpsc::RecvTimeoutError::Timeout) {
            log::warn!("a program that got an event does not end, although it was killed");
        }
    }
}

impl ProgramsHandle {
    /// A descriptor that is at its end when the programs are to end.
    pub(super) fn stopping(&self) -> BorrowedFd<'_> {
        self.stopping.as_fd()
    }
}
