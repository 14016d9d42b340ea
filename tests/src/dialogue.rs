//! An FTP session, line by line. Every read has a deadline; failures print the whole dialogue.

use std::{
    fmt::{Arguments, Write as _},
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use nix::sys::socket::{MsgFlags, send};

use crate::{DEADLINE, proxy::Connector, reply::Reply};

/// A control connection and its data connections.
pub struct Dialogue {
    connector: Connector,
    control: TcpStream,
    received: Vec<u8>,
    transcript: String,
}

impl Dialogue {
    /// Connects and reads the greeting.
    ///
    /// # Panics
    /// The connection fails, or the greeting is not 220.
    pub fn connect(address: SocketAddr) -> Self {
        Self::connect_with(&Connector::new(), address)
    }

    /// As [`Self::connect`], with every connection made by `connector`.
    ///
    /// # Panics
    /// The connection fails, or the greeting is not 220.
    pub fn connect_with(connector: &Connector, address: SocketAddr) -> Self {
        let mut dialogue = Self::dial(connector, address);
        dialogue.expect(220);
        dialogue
    }

    /// Connects without waiting for a greeting.
    ///
    /// # Panics
    /// The connection fails.
    pub fn dial(connector: &Connector, address: SocketAddr) -> Self {
        match connector.connect(address) {
            Ok(control) => Self {
                connector: connector.clone(),
                control,
                received: Vec::new(),
                transcript: format!("connected to {address}\n"),
            },
            Err(error) => panic!("cannot connect to {address}: {error}"),
        }
    }

    /// The control connection, for operations without a method here.
    pub fn control(&self) -> &TcpStream {
        &self.control
    }

    /// Local address of the control connection.
    pub fn local_address(&self) -> SocketAddr {
        self.control.local_addr().expect("a connected socket has an address")
    }

    /// Sends `USER` and `PASS`.
    ///
    /// # Panics
    /// The login is not accepted.
    pub fn login(&mut self, user: &str, password: &str) -> Reply {
        self.command(&format!("USER {user}"), 331);
        self.command(&format!("PASS {password}"), 230)
    }

    /// Sends one command line; CRLF is added.
    pub fn send(&mut self, line: &str) {
        self.send_bytes(format!("{line}\r\n").as_bytes());
    }

    /// Sends bytes as they are.
    ///
    /// # Panics
    /// The connection is closed.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = writeln!(self.transcript, "> {}", String::from_utf8_lossy(bytes).trim_end());
        if let Err(error) = self.control.write_all(bytes) {
            self.fail(format_args!("cannot send: {error}"));
        }
    }

    /// Sends a command of arbitrary bytes and returns its reply. CRLF is added.
    ///
    /// # Panics
    /// The reply has another code, or there is no reply.
    pub fn command_bytes(&mut self, line: &[u8], code: u16) -> Reply {
        self.send_bytes(&[line, b"\r\n"].concat());
        self.expect(code)
    }

    /// Sends bytes of which the last is urgent, as Telnet's Synch does (RFC 854).
    ///
    /// # Panics
    /// The connection is closed.
    pub fn send_urgent(&mut self, bytes: &[u8]) {
        use std::os::fd::AsRawFd;
        let _ = writeln!(self.transcript, "> urgent {bytes:x?}");
        if let Err(error) = send(self.control.as_raw_fd(), bytes, MsgFlags::MSG_OOB) {
            self.fail(format_args!("cannot send urgent data: {error}"));
        }
    }

    /// Sends a command and returns its reply.
    ///
    /// # Panics
    /// The reply has another code, or there is no reply.
    pub fn command(&mut self, line: &str, code: u16) -> Reply {
        self.send(line);
        self.expect(code)
    }

    /// The next reply.
    ///
    /// # Panics
    /// The reply has another code, or there is no reply.
    pub fn expect(&mut self, code: u16) -> Reply {
        let reply = self.reply();
        if reply.code != code {
            self.fail(format_args!("expected {code}"));
        }
        reply
    }

    /// The next reply, with any code.
    ///
    /// # Panics
    /// There is no reply in time.
    pub fn reply(&mut self) -> Reply {
        match self.try_reply(DEADLINE) {
            Ok(Some(reply)) => reply,
            Ok(None) => self.fail(format_args!("the connection was closed")),
            Err(error) => self.fail(format_args!("no reply: {error}")),
        }
    }

    /// The next reply. `None`: the connection was closed.
    ///
    /// # Errors
    /// There is no reply within `limit`, the connection is reset, or the bytes are not a reply.
    pub fn try_reply(&mut self, limit: Duration) -> io::Result<Option<Reply>> {
        self.control.set_read_timeout(Some(limit))?;
        loop {
            if let Some(reply) = Reply::take(&mut self.received).map_err(io::Error::other)? {
                let _ = writeln!(self.transcript, "< {}", reply.text());
                return Ok(Some(reply));
            }
            let mut chunk = [0; 4096];
            match self.control.read(&mut chunk)? {
                0 => return Ok(None),
                n => self.received.extend_from_slice(&chunk[..n]),
            }
        }
    }

    /// Waits for the end of the connection and returns the replies before it.
    ///
    /// # Panics
    /// The connection is still open after [`DEADLINE`].
    pub fn expect_closed(&mut self) -> Vec<Reply> {
        let mut replies = Vec::new();
        loop {
            match self.try_reply(DEADLINE) {
                Ok(Some(reply)) => replies.push(reply),
                Ok(None) => return replies,
                Err(error) if is_closed(&error) => return replies,
                Err(error) => self.fail(format_args!("expected the connection to be closed: {error}")),
            }
        }
    }

    /// Sends `PASV` and returns the announced address.
    ///
    /// # Panics
    /// The reply is not a 227 with an address.
    pub fn pasv(&mut self) -> SocketAddr {
        let reply = self.command("PASV", 227);
        match reply.passive_address() {
            Some(address) => address,
            None => self.fail(format_args!("no address in it")),
        }
    }

    /// Sends `EPSV` and returns the announced port with the address of the control connection.
    ///
    /// # Panics
    /// The reply is not a 229 with a port.
    pub fn epsv(&mut self) -> SocketAddr {
        let reply = self.command("EPSV", 229);
        let peer = self.control.peer_addr().expect("a connected socket has a peer");
        match reply.extended_passive_port() {
            Some(port) => (peer.ip(), port).into(),
            None => self.fail(format_args!("no port in it")),
        }
    }

    /// Opens a data connection to `address` with the connector of the control connection.
    ///
    /// # Panics
    /// The connection fails.
    pub fn data_connection(&mut self, address: SocketAddr) -> TcpStream {
        match self.connector.connect(address) {
            Ok(data) => data,
            Err(error) => self.fail(format_args!("no data connection to {address}: {error}")),
        }
    }

    /// Sends `EPSV`, connects, sends `command` and waits for its 150 or 125.
    ///
    /// # Panics
    /// A step fails.
    pub fn begin(&mut self, command: &str) -> TcpStream {
        let address = self.epsv();
        let data = self.data_connection(address);
        self.send(command);
        let reply = self.reply();
        if !matches!(reply.code, 125 | 150) {
            self.fail(format_args!("expected 150"));
        }
        data
    }

    /// Sends `command` (RETR, STOR, …) without opening the data connection, and aborts the transfer if it
    /// begins. Returns the code of the first reply.
    ///
    /// # Panics
    /// The session ends.
    pub fn probe(&mut self, command: &str) -> u16 {
        self.epsv();
        self.send(command);
        let code = self.reply().code;
        if code == 150 {
            self.send("ABOR");
            let reply = self.reply();
            if !matches!(reply.code, 425 | 426) {
                self.fail(format_args!("expected 425 or 426"));
            }
            self.expect(226);
        }
        code
    }

    /// Sends `command` (RETR, LIST, …), reads the data connection and waits for 226. Returns the data.
    ///
    /// # Panics
    /// A step fails.
    pub fn receive(&mut self, command: &str) -> Vec<u8> {
        let data = self.begin(command);
        self.finish_download(data)
    }

    /// Reads the data connection of a download that has begun, and waits for 226. Returns the data.
    ///
    /// # Panics
    /// A step fails.
    pub fn finish_download(&mut self, mut data: impl Read) -> Vec<u8> {
        let mut content = Vec::new();
        if let Err(error) = data.read_to_end(&mut content) {
            self.fail(format_args!("after {} bytes: {error}", content.len()));
        }
        self.expect(226);
        content
    }

    /// Sends `command` (STOR, APPE, …) and `content` over its data connection, and waits for 226.
    ///
    /// # Panics
    /// A step fails.
    pub fn transmit(&mut self, command: &str, content: &[u8]) -> Reply {
        let mut data = self.begin(command);
        if let Err(error) = data.write_all(content).and_then(|()| data.shutdown(Shutdown::Write)) {
            self.fail(format_args!("cannot send the content: {error}"));
        }
        self.expect(226)
    }

    /// Downloads a file in TYPE I.
    ///
    /// # Panics
    /// A step fails.
    pub fn retrieve(&mut self, path: &str) -> Vec<u8> {
        self.command("TYPE I", 200);
        self.receive(&format!("RETR {path}"))
    }

    /// Uploads a file in TYPE I.
    ///
    /// # Panics
    /// A step fails.
    pub fn store(&mut self, path: &str, content: &[u8]) {
        self.command("TYPE I", 200);
        self.transmit(&format!("STOR {path}"), content);
    }

    /// `SIZE` in TYPE I.
    ///
    /// # Panics
    /// The file does not exist.
    pub fn size(&mut self, path: &str) -> u64 {
        self.command("TYPE I", 200);
        let reply = self.command(&format!("SIZE {path}"), 213);
        match reply.message().parse() {
            Ok(size) => size,
            Err(_) => self.fail(format_args!("no size in it")),
        }
    }

    /// Sends `QUIT` and waits for the end of the connection.
    ///
    /// # Panics
    /// The reply is not 221, or the connection stays open.
    pub fn quit(mut self) {
        self.command("QUIT", 221);
        self.expect_closed();
    }

    /// Ends the control connection with a reset, as a crashing client may.
    pub fn reset(self) {
        reset(self.control);
    }

    fn fail(&self, what: Arguments<'_>) -> ! {
        panic!("{what}\n--- dialogue ---\n{}", self.transcript);
    }
}

/// Closes a connection with a reset. Data in transit in both directions is lost.
///
/// # Panics
/// The socket option cannot be set.
pub fn reset(stream: TcpStream) {
    let no_time = Some(Duration::ZERO);
    socket2::SockRef::from(&stream).set_linger(no_time).expect("a socket can be set to linger");
}

/// Returns true if the error means that the peer is gone, not only silent.
pub fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted)
}

/// Reads exactly `length` bytes of a data connection.
///
/// # Panics
/// They do not arrive in time.
pub fn read_exactly(data: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut content = vec![0; length];
    data.read_exact(&mut content).unwrap_or_else(|error| panic!("waiting for {length} bytes: {error}"));
    content
}

/// Reads a data connection until it ends or is reset: the data that a client has when a node dies.
///
/// # Panics
/// No data and no end arrive for [`DEADLINE`].
pub fn read_what_comes(data: &mut TcpStream) -> Vec<u8> {
    let mut content = Vec::new();
    match data.read_to_end(&mut content) {
        Err(error) if !is_closed(&error) => panic!("after {} bytes: {error}", content.len()),
        _ => content,
    }
}
