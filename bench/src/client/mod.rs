//! The load generator's FTP client: blocking, one thread for each session. It uses little CPU time,
//! because it allocates nothing during transfers and discards downloads in the kernel.

mod tls;
mod transfer;

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

pub(crate) use transfer::{OpenTransfer, SlowDownload, pattern};

/// Time limit of each read and write. A server that hangs fails its round; the run continues.
const IO_TIMEOUT: Duration = Duration::from_secs(60);

/// Name of the user that every measured server knows.
pub(crate) const USER: &str = "bench";
pub(crate) const PASSWORD: &str = "bench";

/// Address of a server, and whether sessions use TLS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endpoint {
    pub address: SocketAddrV4,
    /// Address of data connections, if it differs.
    pub data: Option<Ipv4Addr>,
    /// Use AUTH TLS, and PROT P for data connections.
    pub encrypted: bool,
}

/// A session on a server.
pub(crate) struct Session {
    control: Channel,
    /// Address of data connections.
    data: Ipv4Addr,
    /// Client address of the control connection and of all data connections.
    source: Ipv4Addr,
    /// Has a ticket store that only this session uses.
    tls: Option<Arc<ClientConfig>>,
    /// Bytes that were received and do not yet form a complete line.
    unread: Vec<u8>,
}

enum Channel {
    Plain(TcpStream),
    Encrypted(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Channel {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Encrypted(stream) => &stream.sock,
        }
    }
}

impl Read for Channel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Encrypted(stream) => stream.read(buffer),
        }
    }
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Encrypted(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Encrypted(stream) => stream.flush(),
        }
    }
}

impl Session {
    /// Connects, reads the greeting and starts TLS if the endpoint wants it. Sessions use 250 client
    /// addresses in turn, so that neither ports nor limits per address run out.
    ///
    /// # Errors
    /// The connection fails, or the server sends an unexpected reply.
    pub(crate) fn connect(endpoint: Endpoint) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let source = Ipv4Addr::new(127, 0, 1, 1 + (NEXT.fetch_add(1, Ordering::Relaxed) % 250) as u8);
        let control = Channel::Plain(connect(source, endpoint.address)?);
        let data = endpoint.data.unwrap_or(*endpoint.address.ip());
        let mut session = Self { control, data, source, tls: None, unread: Vec::new() };
        session.expect(2)?;
        if endpoint.encrypted {
            session.command("AUTH TLS", 2)?;
            let configuration = tls::configuration();
            let socket = session.control.socket().try_clone()?;
            session.control = Channel::Encrypted(Box::new(tls::handshake(&configuration, socket)?));
            session.tls = Some(configuration);
        }
        Ok(session)
    }

    /// Connects and logs in.
    ///
    /// # Errors
    /// The connection fails, or the server refuses the login.
    pub(crate) fn login(endpoint: Endpoint) -> io::Result<Self> {
        let mut session = Self::connect(endpoint)?;
        session.command(&format!("USER {USER}"), 3)?;
        session.command(&format!("PASS {PASSWORD}"), 2)?;
        Ok(session)
    }

    /// Connects, logs in and prepares for transfers.
    ///
    /// # Errors
    /// The connection fails, or the server sends an unexpected reply.
    pub(crate) fn ready(endpoint: Endpoint) -> io::Result<Self> {
        let mut session = Self::login(endpoint)?;
        session.prepare()?;
        Ok(session)
    }

    /// Sends the commands that clients send before their first transfer.
    ///
    /// # Errors
    /// The connection is lost, or the server sends an unexpected reply.
    pub(crate) fn prepare(&mut self) -> io::Result<()> {
        if self.tls.is_some() {
            self.command("PBSZ 0", 2)?;
            self.command("PROT P", 2)?;
        }
        self.command("TYPE I", 2)
    }

    /// Sends a command and expects a reply whose code begins with the digit `class`.
    ///
    /// # Errors
    /// The connection is lost, or the reply has another class.
    pub(crate) fn command(&mut self, line: &str, class: u8) -> io::Result<()> {
        self.send(line)?;
        self.expect(class).map_err(|error| io::Error::new(error.kind(), format!("{line}: {error}")))
    }

    /// Sends QUIT and waits for the reply.
    pub(crate) fn quit(mut self) {
        // The server may have closed the connection already.
        let _ = self.command("QUIT", 2);
    }

    fn send(&mut self, line: &str) -> io::Result<()> {
        self.control.write_all(format!("{line}\r\n").as_bytes())?;
        self.control.flush()
    }

    fn expect(&mut self, class: u8) -> io::Result<()> {
        let reply = self.reply()?;
        if reply.as_bytes().first() == Some(&(b'0' + class)) { Ok(()) } else { Err(other(reply)) }
    }

    /// Reads the next reply and returns its last line.
    fn reply(&mut self) -> io::Result<String> {
        loop {
            // Only the last line of a reply has a space after the code (RFC 959 section 4.2).
            let line = self.line()?;
            let code = line.as_bytes().first_chunk::<4>();
            if code.is_some_and(|code| code[..3].iter().all(u8::is_ascii_digit) && code[3] == b' ') {
                return Ok(line);
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&self.unread[..end]).trim_end().to_owned();
                self.unread.drain(..=end);
                if self.unread.is_empty() {
                    // Frees the buffer: thousands of sessions may be idle.
                    self.unread = Vec::new();
                }
                return Ok(line);
            }
            let mut bytes = [0; 2048];
            match self.control.read(&mut bytes)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.unread.extend_from_slice(&bytes[..count]),
            }
            if self.unread.len() > 64 << 10 {
                return Err(other("a line of a reply is longer than 64 KiB"));
            }
        }
    }

    /// Asks for a passive port and connects to it.
    fn open_data(&mut self) -> io::Result<TcpStream> {
        self.send("EPSV")?;
        let reply = self.reply()?;
        // 229 Entering Extended Passive Mode (|||6446|)
        let port = reply.strip_prefix("229").and_then(|text| text.split('|').nth(3));
        let port = port.and_then(|port| port.parse().ok()).ok_or_else(|| other(reply.as_str()))?;
        connect(self.source, SocketAddrV4::new(self.data, port))
    }

    /// Starts TLS on a data connection if the session uses TLS.
    fn protect(&self, socket: TcpStream) -> io::Result<Channel> {
        Ok(match &self.tls {
            None => Channel::Plain(socket),
            Some(configuration) => Channel::Encrypted(Box::new(tls::handshake(configuration, socket)?)),
        })
    }
}

fn connect(source: Ipv4Addr, server: SocketAddrV4) -> io::Result<TcpStream> {
    // A load generator must not be used against machines of others.
    if !server.ip().is_loopback() {
        return Err(other(format!("{server} is not a loopback address")));
    }
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // The kernel chooses the port at connect time. Then a port may be used for several servers,
    // because only the pair of both addresses must be unique.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddrV4::new(source, 0).into())?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(IO_TIMEOUT))?;
    socket.set_write_timeout(Some(IO_TIMEOUT))?;
    socket.connect(&server.into())?;
    Ok(socket.into())
}

/// An I/O error that consists of a text.
pub(crate) fn other(text: impl Into<String>) -> io::Error {
    io::Error::other(text.into())
}
