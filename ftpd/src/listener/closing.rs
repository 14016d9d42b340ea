//! Closing a listener without losing connections.
//!
//! close(2) resets every connection that the kernel has completed and the process has not accepted. A
//! balancer has sent such a connection's first bytes already, so it cannot try another node. So a listener
//! that is about to close first refuses new connections, and then accepts the last ones.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

/// The time in which handshakes end that had begun when the listener began to refuse.
pub(crate) const LAST_HANDSHAKES: Duration = Duration::from_millis(250);

/// Makes the kernel refuse each new connection to the listener, as if nothing listened. Connections in its
/// queue, and handshakes that have begun, stay.
///
/// The listener is bound to a network interface that does not exist, so no SYN finds it. That needs no
/// privilege since Linux 5.7. A socket filter that drops SYNs does not serve: kernels may forbid it to
/// processes without privileges.
///
/// # Errors
/// Those of setsockopt(2) with SO_BINDTOIFINDEX.
pub(crate) fn refuse_new(listener: &impl AsFd) -> io::Result<()> {
    // No interface has this index: the kernel counts them from 1.
    let nowhere = libc::c_int::MAX;
    let length = size_of_val(&nowhere) as libc::socklen_t;
    // SAFETY: the descriptor is open as long as `listener` is borrowed, and the kernel reads `length` bytes
    // from the address of an integer of that size.
    let result = unsafe {
        libc::setsockopt(
            listener.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTOIFINDEX,
            (&raw const nowhere).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
