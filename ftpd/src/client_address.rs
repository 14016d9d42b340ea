//! The client address: taken from the PROXY header of a trusted balancer, else the peer's own.

use std::{
    io,
    net::{self, IpAddr, SocketAddr},
    os::fd::AsRawFd,
    time::Duration,
};

use ipnet::IpNet;
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{error::Elapsed, timeout},
};

use crate::protocol::proxy::{self, ParsedHeader, ProxyHeader};

/// Bytes peeked at once: longer than the header of any known balancer.
const PEEK: usize = 256;

/// The two addresses of a connection, as the client sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionAddresses {
    /// The client address.
    pub client: SocketAddr,
    /// The address that the client connected to: this node's or the balancer's.
    pub reached: SocketAddr,
}

/// Reason why a connection has no client address.
#[derive(Debug, thiserror::Error)]
pub enum NoClientAddress {
    /// The peer closed the connection without sending anything, as a balancer's health check does.
    #[error("closed without a PROXY header, as a health check does")]
    ClosedByPeer,
    /// The header says that the balancer connected for itself, or does not know the client.
    #[error("the PROXY header does not contain a client address")]
    BalancersOwn,
    #[error("the trusted balancer did not send a valid PROXY header")]
    InvalidHeader,
    #[error("a PROXY header from an address that is not in trusted_balancers")]
    NotTrusted,
    #[error("the PROXY header did not arrive in time")]
    Late(#[from] Elapsed),
    #[error("the connection broke")]
    Broken(#[from] io::Error),
}

/// Trusted balancers, and the time limit for their PROXY header.
#[derive(Clone, Debug)]
pub struct TrustedBalancers {
    pub networks: Vec<IpNet>,
    pub header_timeout: Duration,
}

impl TrustedBalancers {
    /// Returns true if `peer` is a trusted balancer.
    pub fn is_balancer(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.networks.iter().any(|network| network.contains(&peer))
    }

    /// The addresses of a connection from `peer`. A trusted balancer must send a PROXY header: exactly the
    /// header is read from the stream. From other peers nothing is read.
    ///
    /// # Errors
    /// See [`NoClientAddress`].
    pub async fn addresses_of(
        &self,
        stream: &mut TcpStream,
        peer: SocketAddr,
    ) -> Result<ConnectionAddresses, NoClientAddress> {
        let client = canonical(peer);
        if !self.is_balancer(client.ip()) {
            return Ok(ConnectionAddresses { client, reached: canonical(stream.local_addr()?) });
        }
        self.read_header(stream).await?.addresses()
    }

    /// Reads exactly the PROXY header of a connection: the bytes after it belong to the client.
    ///
    /// # Errors
    /// The header is not valid, or did not arrive in time.
    pub async fn read_header(&self, stream: &mut TcpStream) -> Result<HeaderBytes, NoClientAddress> {
        timeout(self.header_timeout, read_header(stream)).await?
    }
}

/// A PROXY header that was read from a connection.
#[derive(Debug)]
pub struct HeaderBytes {
    /// The header, as it arrived.
    pub bytes: Vec<u8>,
    content: ProxyHeader,
}

impl HeaderBytes {
    /// # Errors
    /// The header has no client address.
    pub fn addresses(&self) -> Result<ConnectionAddresses, NoClientAddress> {
        addresses_in(self.content)
    }
}

/// Reads the PROXY header of a connection, if the complete header has already arrived. It usually has when
/// the connection is accepted, and then the socket need not be registered with tokio. `None`: nothing was
/// read; use [`TrustedBalancers::read_header`].
pub fn take_arrived_header(socket: &net::TcpStream) -> Option<Result<HeaderBytes, NoClientAddress>> {
    let socket = socket.as_raw_fd();
    let mut seen = [0; PEEK];
    let count = recv(socket, &mut seen, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT).ok()?;
    let Ok(ParsedHeader::Complete { header: content, length }) = proxy::parse(&seen[..count]) else {
        return None;
    };
    // MSG_PEEK has left the bytes in the socket's buffer.
    let taken = recv(socket, &mut seen[..length], MsgFlags::MSG_DONTWAIT);
    Some(match taken {
        Ok(count) if count == length => Ok(HeaderBytes { bytes: seen[..length].to_vec(), content }),
        Ok(_) => Err(NoClientAddress::InvalidHeader),
        Err(errno) => Err(NoClientAddress::Broken(errno.into())),
    })
}

/// The bytes at the start of a connection from a peer that may be a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstBytes {
    NotYet,
    /// They are, or begin, a PROXY header of version 2, the one that relays send.
    Header,
    /// Bytes of a client, or the end of the connection.
    Other,
}

/// Looks at the bytes that have arrived and leaves them in the socket.
pub fn first_bytes(socket: &impl AsRawFd) -> FirstBytes {
    let mut seen = [0; PEEK];
    match recv(socket.as_raw_fd(), &mut seen, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(count) => match &seen[..count] {
            // Version 1 is text, as an upload may be.
            [] | [b'P', ..] => FirstBytes::Other,
            bytes if proxy::parse(bytes).is_ok() => FirstBytes::Header,
            _ => FirstBytes::Other,
        },
        Err(Errno::EAGAIN | Errno::EINTR) => FirstBytes::NotYet,
        Err(_) => FirstBytes::Other,
    }
}

/// Waits for the first bytes for at most `limit`, and leaves them in the socket.
pub async fn await_first_bytes(stream: &TcpStream, limit: Duration) -> FirstBytes {
    let arrived = timeout(limit, stream.readable()).await;
    if arrived.is_err() { FirstBytes::NotYet } else { first_bytes(stream) }
}

fn addresses_in(header: ProxyHeader) -> Result<ConnectionAddresses, NoClientAddress> {
    match header {
        ProxyHeader::Proxied { source, destination } => {
            Ok(ConnectionAddresses { client: canonical(source), reached: canonical(destination) })
        }
        ProxyHeader::Local => Err(NoClientAddress::BalancersOwn),
    }
}

/// The address, with an IPv4-mapped IPv6 address as IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

async fn read_header(stream: &mut TcpStream) -> Result<HeaderBytes, NoClientAddress> {
    let mut header = Vec::new();
    loop {
        let mut seen = [0; PEEK];
        let count = stream.peek(&mut seen).await?;
        if count == 0 {
            return Err(if header.is_empty() {
                NoClientAddress::ClosedByPeer
            } else {
                NoClientAddress::InvalidHeader
            });
        }
        let before = header.len();
        header.extend_from_slice(&seen[..count]);
        match proxy::parse(&header).map_err(|_| NoClientAddress::InvalidHeader)? {
            // All peeked bytes belong to the header.
            ParsedHeader::Incomplete => _ = stream.read_exact(&mut seen[..count]).await?,
            ParsedHeader::Complete { header: content, length } => {
                stream.read_exact(&mut seen[..length - before]).await?;
                header.truncate(length);
                return Ok(HeaderBytes { bytes: header, content });
            }
        }
    }
}
