//! The ends of TCP connections: telling the peer's FIN from a reset, and ending a connection in either way.

use std::{
    io,
    mem::zeroed,
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use nix::errno::Errno;
use socket2::{SockRef, TcpKeepalive};

/// TCP_CLOSE_WAIT of the kernel's `tcp_states.h`: the peer has sent FIN, and this side has not.
const CLOSE_WAIT: u8 = 8;

/// The same times as nginx's for the control connections: a peer that has vanished is noticed after 3
/// minutes.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(120))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);

/// The meaning of a read of 0 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// The peer ended its stream with FIN.
    Orderly,
    /// The peer ended its stream with FIN, and reset the connection afterwards.
    OrderlyThenReset,
    /// The connection was reset.
    Reset,
}

/// Makes the kernel reset the connection when the socket is closed for any reason: by a drop, or because the
/// process is killed or runs out of memory. Set it on a socket that will be relayed as soon as it exists.
///
/// # Errors
/// The socket is unusable.
pub fn reset_on_close(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// Makes the kernel end the connection in an orderly way when the socket is closed, and deliver in the
/// background what it has not sent yet.
pub(super) fn end_on_close(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(None)
}

/// The options of both sockets of a relayed connection.
pub(super) fn set_options(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    // A client may send ABOR with urgent data, which is an ordinary byte of the stream to a node.
    socket.set_out_of_band_inline(true)
}

/// The meaning of a read of 0 bytes from `socket`. `is_shut`: this side has shut down its sending direction.
///
/// The kernel reports a reset once. If another call consumes that error, a read returns 0 bytes as after FIN.
/// splice(2) to the socket can do so: when the kernel has moved a part of the bytes before it notices the
/// reset, splice returns their number and drops the error. Therefore the state of the connection decides:
///
/// * CLOSE_WAIT: the peer has sent FIN.
/// * This side had shut down sending before: shutdown(2) fails on a connection that was reset earlier, and
///   after it only reads can consume an error, which they return. So the read of 0 bytes is FIN. (The state
///   may be any from LAST_ACK to CLOSE, which is also that of a reset connection.)
/// * Otherwise the connection was reset. The error is EPIPE if FIN came before the reset (`tcp_reset` in the
///   kernel). If the error is gone, the two cases look the same, and the end counts as a reset.
pub(super) fn stream_end(socket: &impl AsFd, is_shut: bool) -> StreamEnd {
    if is_shut || matches!(tcp_state(socket), Ok(CLOSE_WAIT)) {
        return StreamEnd::Orderly;
    }
    reset_after_end(socket)
}

/// Takes the error of a connection that was reset, and says whether the peer had ended its stream before.
pub(super) fn reset_after_end(socket: &impl AsFd) -> StreamEnd {
    match SockRef::from(socket).take_error() {
        Ok(Some(error)) if error.raw_os_error() == Some(libc::EPIPE) => StreamEnd::OrderlyThenReset,
        _ => StreamEnd::Reset,
    }
}

fn tcp_state(socket: &impl AsFd) -> Result<u8, Errno> {
    // SAFETY: `tcp_info` consists of integers.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which lives through the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    Errno::result(result).map(|_| info.tcpi_state)
}

/// The bytes that the kernel has taken for the peer and the peer has not acknowledged, FIN included.
pub(super) fn unacknowledged(socket: &impl AsFd) -> Result<usize, Errno> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ (tcp(7), SIOCOUTQ) writes one int, which lives through the call.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    Errno::result(result).map(|_| usize::try_from(bytes).unwrap_or(0))
}
