//! Connections of a client, or of a balancer on behalf of a client.

use std::{
    io::{self, Write},
    net::{IpAddr, SocketAddr, TcpStream},
};

use socket2::{Domain, Socket, Type};

use crate::DEADLINE;

/// Source address, socket options and PROXY header of connections.
#[derive(Clone, Debug, Default)]
pub struct Connector {
    source: Option<IpAddr>,
    receive_buffer: Option<usize>,
    send_buffer: Option<usize>,
    header: Option<Header>,
}

/// The PROXY header of a balancer.
#[derive(Clone, Copy, Debug)]
struct Header {
    version: Version,
    client: IpAddr,
    balancer: IpAddr,
}

#[derive(Clone, Copy, Debug)]
enum Version {
    One,
    Two,
}

impl Connector {
    /// From any address, without a header.
    pub fn new() -> Self {
        Self::default()
    }

    /// Connects from this address of the host.
    pub fn from(self, source: IpAddr) -> Self {
        Self { source: Some(source), ..self }
    }

    /// Sets the sizes of the socket buffers in bytes (the kernel doubles them). With small buffers, the
    /// peer notices soon that this side does not read or cannot send.
    pub fn buffers(self, receive: usize, send: usize) -> Self {
        Self { receive_buffer: Some(receive), send_buffer: Some(send), ..self }
    }

    /// Begins every connection with a PROXY header of version 1 for `client`, connected to `balancer`.
    pub fn proxy_v1(self, client: IpAddr, balancer: IpAddr) -> Self {
        Self { header: Some(Header { version: Version::One, client, balancer }), ..self }
    }

    /// As [`Self::proxy_v1`], in version 2.
    pub fn proxy_v2(self, client: IpAddr, balancer: IpAddr) -> Self {
        Self { header: Some(Header { version: Version::Two, client, balancer }), ..self }
    }

    /// # Errors
    /// The connection fails, or the header cannot be sent.
    pub fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(bytes) = self.send_buffer {
            socket.set_send_buffer_size(bytes)?;
        }
        if let Some(source) = self.source {
            socket.bind(&SocketAddr::from((source, 0)).into())?;
        }
        socket.connect_timeout(&address.into(), DEADLINE)?;
        let mut stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        if let Some(header) = self.header {
            let client = SocketAddr::from((header.client, stream.local_addr()?.port()));
            let balancer = SocketAddr::from((header.balancer, address.port()));
            stream.write_all(&match header.version {
                Version::One => header_v1(client, balancer),
                Version::Two => header_v2(client, balancer),
            })?;
        }
        Ok(stream)
    }
}

/// The text form of the header (PROXY protocol specification, section 2.1).
///
/// # Panics
/// The addresses have different families.
pub fn header_v1(client: SocketAddr, balancer: SocketAddr) -> Vec<u8> {
    assert_eq!(client.is_ipv4(), balancer.is_ipv4(), "a header has two addresses of one family");
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (client.ip(), balancer.ip());
    format!("PROXY {family} {from} {to} {} {}\r\n", client.port(), balancer.port()).into_bytes()
}

/// The binary form of the header (section 2.2).
///
/// # Panics
/// The addresses have different families.
pub fn header_v2(client: SocketAddr, balancer: SocketAddr) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    match (client.ip(), balancer.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.extend([0x11, 0, 12]);
            header.extend(from.octets());
            header.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            header.extend([0x21, 0, 36]);
            header.extend(from.octets());
            header.extend(to.octets());
        }
        _ => panic!("a header has two addresses of one family"),
    }
    header.extend(client.port().to_be_bytes());
    header.extend(balancer.port().to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let (client, balancer) = (([192, 0, 2, 7], 4000).into(), ([192, 0, 2, 1], 21).into());
        assert_eq!(header_v1(client, balancer), b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 21\r\n");
        let header = header_v2(client, balancer);
        assert_eq!(header.len(), 28);
        assert_eq!(header[12..16], [0x21, 0x11, 0, 12]);
        assert_eq!(header[24..], [0x0f, 0xa0, 0, 21]);
    }
}
