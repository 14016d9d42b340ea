//! An FTP or FTPS session that reports errors to its caller, for tests in which some operations may fail.

use std::{
    fmt::Display,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use crate::{
    proxy::Connector,
    reply::Reply,
    tls::{TlsClient, TlsStream},
};

/// A session on one node.
pub struct LoadSession {
    /// The text of the greeting: the node's name, in clusters whose nodes greet so.
    pub node: String,
    connector: Connector,
    tls: Option<TlsClient>,
    control: Channel,
    received: Vec<u8>,
    /// The next data connection uses PASV.
    uses_pasv: bool,
}

/// A failed operation of a session.
#[derive(Debug)]
pub struct SessionError {
    /// The control connection has ended.
    pub is_lost: bool,
    pub what: String,
}

impl SessionError {
    /// The operation failed, and the session goes on.
    pub fn failed(what: impl Display) -> Self {
        Self { is_lost: false, what: what.to_string() }
    }

    /// The session cannot go on.
    pub fn lost(what: impl Display) -> Self {
        Self { is_lost: true, what: what.to_string() }
    }
}

/// A control or data connection.
enum Channel {
    Plain(TcpStream),
    Secure(Box<TlsStream>),
}

impl Channel {
    fn over(stream: TcpStream, tls: Option<&TlsClient>) -> io::Result<Self> {
        Ok(match tls {
            None => Self::Plain(stream),
            Some(tls) => Self::Secure(Box::new(tls.encrypt(stream)?)),
        })
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Secure(stream) => &stream.sock,
        }
    }

    /// Ends the connection in order, and waits until the node has ended it.
    fn end(mut self) -> io::Result<()> {
        if let Self::Secure(stream) = &mut self {
            stream.conn.send_close_notify();
            stream.flush()?;
        }
        self.socket().shutdown(Shutdown::Write)?;
        io::copy(&mut self, &mut io::sink())?;
        Ok(())
    }
}

impl Read for Channel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Secure(stream) => stream.read(buffer),
        }
    }
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Secure(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Secure(stream) => stream.flush(),
        }
    }
}

impl LoadSession {
    /// Connects and reads the greeting, with `tls` also AUTH TLS and the handshake.
    ///
    /// # Errors
    /// A step fails.
    pub fn connect(
        connector: &Connector,
        address: SocketAddr,
        tls: Option<TlsClient>,
    ) -> Result<Self, SessionError> {
        let stream = connector.connect(address).map_err(SessionError::lost)?;
        let mut session = Self {
            node: String::new(),
            connector: connector.clone(),
            tls: None,
            control: Channel::Plain(stream),
            received: Vec::new(),
            uses_pasv: false,
        };
        let greeting = session.reply()?;
        if greeting.code != 220 {
            return Err(SessionError::lost(format!("greeting {greeting:?}")));
        }
        session.node = greeting.message();
        let Some(tls) = tls else { return Ok(session) };
        session.command("AUTH TLS", 234)?;
        let clear = session.control.socket().try_clone().map_err(SessionError::lost)?;
        session.control = Channel::over(clear, Some(&tls)).map_err(SessionError::lost)?;
        session.tls = Some(tls);
        Ok(session)
    }

    /// USER and PASS, with TLS also PBSZ and PROT P; then TYPE I.
    ///
    /// # Errors
    /// A step fails.
    pub fn login(&mut self, user: &str, password: &str) -> Result<(), SessionError> {
        self.command(&format!("USER {user}"), 331)?;
        self.command(&format!("PASS {password}"), 230)?;
        if self.tls.is_some() {
            self.command("PBSZ 0", 200)?;
            self.command("PROT P", 200)?;
        }
        self.command("TYPE I", 200)?;
        Ok(())
    }

    /// Sends a command and returns its reply.
    ///
    /// # Errors
    /// The control connection has ended.
    pub fn exchange(&mut self, line: &str) -> Result<Reply, SessionError> {
        let lost = |error| SessionError::lost(format!("{line}: {error}"));
        self.control.write_all(format!("{line}\r\n").as_bytes()).map_err(lost)?;
        self.control.flush().map_err(lost)?;
        self.reply().map_err(|error| SessionError { what: format!("{line}: {}", error.what), ..error })
    }

    /// Sends a command whose reply must have this code.
    ///
    /// # Errors
    /// The reply has another code, or the control connection has ended.
    pub fn command(&mut self, line: &str, code: u16) -> Result<Reply, SessionError> {
        let reply = self.exchange(line)?;
        if reply.code == code { Ok(reply) } else { Err(SessionError::failed(format!("{line}: {reply:?}"))) }
    }

    fn reply(&mut self) -> Result<Reply, SessionError> {
        loop {
            match Reply::take(&mut self.received) {
                // 421: the node ends the session.
                Ok(Some(reply)) if reply.code == 421 => return Err(SessionError::lost(reply.text())),
                Ok(Some(reply)) => return Ok(reply),
                Ok(None) => {}
                Err(error) => return Err(SessionError::lost(error)),
            }
            let mut chunk = [0; 4096];
            match self.control.read(&mut chunk) {
                Ok(0) => return Err(SessionError::lost("the control connection was closed")),
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(error) => return Err(SessionError::lost(format!("control connection: {error}"))),
            }
        }
    }

    /// The address for the next data connection, by PASV and EPSV in turn.
    fn passive(&mut self) -> Result<SocketAddr, SessionError> {
        self.uses_pasv = !self.uses_pasv;
        let no_address = |reply: &Reply| SessionError::failed(format!("no address: {reply:?}"));
        if self.uses_pasv {
            let reply = self.command("PASV", 227)?;
            return reply.passive_address().ok_or_else(|| no_address(&reply));
        }
        let reply = self.command("EPSV", 229)?;
        let peer = self.control.socket().peer_addr().map_err(SessionError::lost)?;
        reply.extended_passive_port().map(|port| (peer.ip(), port).into()).ok_or_else(|| no_address(&reply))
    }

    /// Begins a transfer: connects, sends the command, waits for 150.
    fn begin(&mut self, command: &str) -> Result<Channel, SessionError> {
        let address = self.passive()?;
        let failed =
            |error| SessionError::failed(format!("{command}: data connection to {address}: {error}"));
        let data = self.connector.connect(address).map_err(failed)?;
        self.command(command, 150)?;
        let channel = Channel::over(data, self.tls.as_ref()).map_err(failed);
        self.conclude_if_failed(channel)
    }

    /// After a failed data connection the node still sends the reply of the transfer.
    fn conclude_if_failed<T>(&mut self, result: Result<T, SessionError>) -> Result<T, SessionError> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => {
                let reply = self.reply()?;
                Err(SessionError::failed(format!("{}; {reply:?}", error.what)))
            }
        }
    }

    fn conclude(&mut self, command: &str) -> Result<(), SessionError> {
        let reply = self.reply()?;
        if reply.code == 226 { Ok(()) } else { Err(SessionError::failed(format!("{command}: {reply:?}"))) }
    }

    /// Performs a whole download or listing.
    ///
    /// # Errors
    /// A step fails.
    pub fn receive(&mut self, command: &str) -> Result<Vec<u8>, SessionError> {
        let mut data = self.begin(command)?;
        let mut content = Vec::new();
        let read = data.read_to_end(&mut content);
        let read = read.map_err(|error| SessionError::failed(format!("{command}: {error}")));
        self.conclude_if_failed(read)?;
        self.conclude(command)?;
        Ok(content)
    }

    /// Performs a whole upload.
    ///
    /// # Errors
    /// A step fails.
    pub fn transmit(&mut self, command: &str, content: &[u8]) -> Result<(), SessionError> {
        let mut data = self.begin(command)?;
        let sent = data.write_all(content).and_then(|()| data.end());
        let sent = sent.map_err(|error| SessionError::failed(format!("{command}: {error}")));
        self.conclude_if_failed(sent)?;
        self.conclude(command)
    }

    /// Sends QUIT.
    ///
    /// # Errors
    /// The reply is not 221.
    pub fn quit(&mut self) -> Result<(), SessionError> {
        self.command("QUIT", 221)?;
        Ok(())
    }
}
