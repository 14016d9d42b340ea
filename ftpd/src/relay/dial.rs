//! Connects to the owner of a passive port.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::SockRef;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::ends;

/// Connects to `address` within `limit`, and sends `header`. The socket resets its connection when it is
/// closed. `source`: the address from which to connect, if it is of the same family.
///
/// # Errors
/// Those of connect(2) and send(2), and `TimedOut` after `limit`.
pub(super) async fn dial(
    address: SocketAddr,
    source: Option<IpAddr>,
    header: &[u8],
    limit: Duration,
) -> io::Result<TcpStream> {
    let connect = async {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        ends::reset_on_close(&socket)?;
        if let Some(source) = source.filter(|source| source.is_ipv4() == address.is_ipv4()) {
            // The kernel chooses the port when it connects, so each node's port has all local ports to
            // itself.
            setsockopt(&socket, IpBindAddressNoPort, &true)?;
            socket.bind(SocketAddr::new(source, 0))?;
        }
        // The ACK that completes the handshake waits for the header and leaves with it. So the node has the
        // header when it accepts the connection, and need not wait for it.
        SockRef::from(&socket).set_tcp_quickack(false)?;
        let stream = socket.connect(address).await?;
        write_all(&stream, header).await?;
        Ok(stream)
    };
    timeout(limit, connect).await.map_err(|_| io::Error::from(ErrorKind::TimedOut))?
}

async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
