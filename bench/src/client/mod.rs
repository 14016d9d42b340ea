//! A blocking FTP client that costs little: one thread a session, no allocation while bytes move,
//! downloads dropped in the kernel. What it costs is not what is measured.

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

pub use transfer::{SlowDownload, pattern};

/// How long any read or write may take: a server that hangs ends the round, not the run.
const PATIENCE: Duration = Duration::from_secs(60);

/// The account that every server under test has.
pub const USER: &str = "bench";
pub const PASSWORD: &str = "bench";

/// Where and how sessions are opened.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub address: SocketAddrV4,
    /// AUTH TLS, and PROT P for data.
    pub encrypted: bool,
}

/// A control connection.
pub struct Session {
    control: Channel,
    server: Ipv4Addr,
    /// Its data connections come from here too.
    source: Ipv4Addr,
    /// With this session's own store of tickets.
    tls: Option<Arc<ClientConfig>>,
    /// What was read and is not yet a whole line.
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
    /// Connects, from the next of 250 addresses so that neither ports nor the limits of one client
    /// run out, and reads the greeting; encrypted if the target is.
    ///
    /// # Errors
    /// No connection, or an unexpected reply.
    pub fn connect(target: Target) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let source = Ipv4Addr::new(127, 0, 1, 1 + (NEXT.fetch_add(1, Ordering::Relaxed) % 250) as u8);
        let control = Channel::Plain(connect(source, target.address)?);
        let server = *target.address.ip();
        let mut session = Self { control, server, source, tls: None, unread: Vec::new() };
        session.expect(2)?;
        if target.encrypted {
            session.command("AUTH TLS", 2)?;
            let configuration = tls::configuration();
            let socket = session.control.socket().try_clone()?;
            session.control = Channel::Encrypted(Box::new(tls::handshake(&configuration, socket)?));
            session.tls = Some(configuration);
        }
        Ok(session)
    }

    /// As [`Self::connect`], and logs in.
    ///
    /// # Errors
    /// No connection, or the login was refused.
    pub fn login(target: Target) -> io::Result<Self> {
        let mut session = Self::connect(target)?;
        session.command(&format!("USER {USER}"), 3)?;
        session.command(&format!("PASS {PASSWORD}"), 2)?;
        Ok(session)
    }

    /// As [`Self::login`], and says what clients say before they transfer.
    ///
    /// # Errors
    /// No connection, or an unexpected reply.
    pub fn ready(target: Target) -> io::Result<Self> {
        let mut session = Self::login(target)?;
        session.prepare()?;
        Ok(session)
    }

    /// What clients say before they transfer.
    ///
    /// # Errors
    /// The connection is lost, or an unexpected reply.
    pub fn prepare(&mut self) -> io::Result<()> {
        if self.tls.is_some() {
            self.command("PBSZ 0", 2)?;
            self.command("PROT P", 2)?;
        }
        self.command("TYPE I", 2)
    }

    /// Sends a command and wants a reply of this class: 2 for any 2yz.
    ///
    /// # Errors
    /// The connection is lost, or another reply.
    pub fn command(&mut self, line: &str, class: u8) -> io::Result<()> {
        self.send(line)?;
        self.expect(class).map_err(|error| io::Error::new(error.kind(), format!("{line}: {error}")))
    }

    /// Says goodbye and waits for the answer.
    pub fn quit(mut self) {
        // The server may have closed by itself.
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

    /// The last line of the next reply.
    fn reply(&mut self) -> io::Result<String> {
        loop {
            // Of a reply of several lines only the last has a space after the code, RFC 959 4.2.
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
                    // Sessions that idle by the thousand hold nothing.
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
                return Err(other("a reply without an end"));
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
        connect(self.source, SocketAddrV4::new(self.server, port))
    }

    fn protect(&self, socket: TcpStream) -> io::Result<Channel> {
        Ok(match &self.tls {
            None => Channel::Plain(socket),
            Some(configuration) => Channel::Encrypted(Box::new(tls::handshake(configuration, socket)?)),
        })
    }
}

fn connect(source: Ipv4Addr, server: SocketAddrV4) -> io::Result<TcpStream> {
    // What floods a server is for one's own machine only.
    if !server.ip().is_loopback() {
        return Err(other(format!("{server} is no loopback address")));
    }
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // The port is chosen when connecting: only the whole pair of addresses must be unique.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddrV4::new(source, 0).into())?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.connect(&server.into())?;
    Ok(socket.into())
}

/// An error that is only its text.
pub fn other(text: impl Into<String>) -> io::Error {
    io::Error::other(text.into())
}
