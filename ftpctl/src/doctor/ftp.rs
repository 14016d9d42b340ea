//! The FTP client of the doctor. Every step has a time limit, and an error says at which step it failed.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rustls::HandshakeKind;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::trust::SessionTls;

/// Maximum length of one reply.
const REPLY_SIZE: usize = 64 * 1024;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FtpError {
    #[error("connection refused")]
    Refused,
    #[error("no answer to the connection attempt in {} s", .0.as_secs_f64())]
    Silent(Duration),
    #[error("cannot connect: {0}")]
    Unreachable(io::Error),
    #[error("the connection was closed")]
    Closed,
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    #[error("no reply in {} s", .0.as_secs_f64())]
    NoReply(Duration),
    #[error("{command}: {reply}")]
    Reply { command: String, reply: FtpReply },
    #[error("the TLS handshake failed: {0}")]
    Tls(io::Error),
    #[error("not a reply of FTP: {0:?}")]
    NoFtp(String),
}

/// A reply: its code, and its text in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FtpReply {
    pub(crate) code: u16,
    pub(crate) text: String,
}

impl std::fmt::Display for FtpReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.code, self.text)
    }
}

/// A connection, plain or encrypted.
pub(crate) enum Channel {
    Plain(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
}

impl Channel {
    pub(crate) async fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(bytes).await,
            Self::Encrypted(stream) => stream.read(bytes).await,
        }
    }

    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes).await,
            Self::Encrypted(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    /// An orderly end of what this side sends.
    async fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.shutdown().await,
            Self::Encrypted(stream) => stream.shutdown().await,
        }
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Encrypted(stream) => stream.get_ref().0,
        }
    }

    /// True if the handshake resumed a TLS session. `None` without TLS.
    pub(crate) fn is_resumed(&self) -> Option<bool> {
        match self {
            Self::Plain(_) => None,
            Self::Encrypted(stream) => {
                Some(stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed))
            }
        }
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(self) {
        // Without the option the end is orderly, and the check finds nothing.
        let _ = self.tcp().set_zero_linger();
    }
}

/// A control connection.
pub(crate) struct FtpClient {
    control: Channel,
    received: Vec<u8>,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    limit: Duration,
    tls: Option<SessionTls>,
    is_private: bool,
    /// `TLSv1_3`, once the control connection is encrypted.
    pub(crate) tls_version: Option<String>,
    pub(crate) is_resumed: Option<bool>,
    /// Time from the start of the connection to the greeting.
    pub(crate) greeting_time: Duration,
}

impl FtpClient {
    /// Connects and reads the greeting. `implicit`: TLS from the first byte.
    pub(crate) async fn connect(
        address: SocketAddr,
        implicit: Option<SessionTls>,
        limit: Duration,
    ) -> Result<Self, FtpError> {
        let start = Instant::now();
        let stream = connect(address, limit).await?;
        let io = |error| FtpError::Broken(error);
        let (peer, local) = (stream.peer_addr().map_err(io)?, stream.local_addr().map_err(io)?);
        let mut client = Self {
            control: Channel::Plain(stream),
            received: Vec::new(),
            peer,
            local,
            limit,
            tls: None,
            is_private: false,
            tls_version: None,
            is_resumed: None,
            greeting_time: Duration::ZERO,
        };
        if let Some(tls) = implicit {
            client = client.encrypt(tls).await?;
        }
        client.expect("greeting", 2).await?;
        client.greeting_time = start.elapsed();
        Ok(client)
    }

    /// AUTH TLS and the handshake. `Ok(false)`: the node offers no TLS.
    pub(crate) async fn auth_tls(mut self, tls: SessionTls) -> Result<(Self, bool), FtpError> {
        let reply = self.command("AUTH TLS").await?;
        if reply.code != 234 {
            return Ok((self, false));
        }
        Ok((self.encrypt(tls).await?, true))
    }

    async fn encrypt(mut self, tls: SessionTls) -> Result<Self, FtpError> {
        let Channel::Plain(stream) = self.control else { return Ok(self) };
        let stream = handshake(&tls, stream, self.limit).await?;
        self.tls_version =
            stream.get_ref().1.protocol_version().map(|version| format!("{version:?}").replace('_', "."));
        self.control = Channel::Encrypted(Box::new(stream));
        self.is_resumed = self.control.is_resumed();
        self.tls = Some(tls);
        Ok(self)
    }

    /// USER and PASS, then TYPE I, and encrypted data connections where the control connection is.
    pub(crate) async fn login(&mut self, user: &str, password: &str) -> Result<(), FtpError> {
        let reply = self.command(&format!("USER {user}")).await?;
        if reply.code == 331 {
            let reply = self.command(&format!("PASS {password}")).await?;
            accept("PASS", reply, 2)?;
        } else {
            accept("USER", reply, 2)?;
        }
        if self.tls.is_some() {
            self.ask("PBSZ 0").await?;
            self.ask("PROT P").await?;
            self.is_private = true;
        }
        self.ask("TYPE I").await?;
        Ok(())
    }

    /// Plain data connections from now on, if the node allows them.
    pub(crate) async fn plain_data(&mut self) -> Result<bool, FtpError> {
        if !self.is_private {
            return Ok(true);
        }
        let allowed = self.command("PROT C").await?.code / 100 == 2;
        self.is_private = !allowed;
        Ok(allowed)
    }

    /// Data connections as after the login.
    pub(crate) async fn private_data(&mut self) -> Result<(), FtpError> {
        if self.tls.is_some() && !self.is_private {
            self.ask("PROT P").await?;
            self.is_private = true;
        }
        Ok(())
    }

    /// Sends a command and returns its reply, whatever it is.
    pub(crate) async fn command(&mut self, line: &str) -> Result<FtpReply, FtpError> {
        self.send(line).await?;
        self.reply().await
    }

    /// Sends a command that must succeed with a reply 2xx or 3xx.
    pub(crate) async fn ask(&mut self, line: &str) -> Result<FtpReply, FtpError> {
        let reply = self.command(line).await?;
        match reply.code / 100 {
            2 | 3 => Ok(reply),
            _ => Err(refusal(line, reply)),
        }
    }

    pub(crate) async fn send(&mut self, line: &str) -> Result<(), FtpError> {
        let limit = self.limit;
        match timeout(limit, self.control.write_all(format!("{line}\r\n").as_bytes())).await {
            Ok(sent) => sent.map_err(broken),
            Err(_) => Err(FtpError::NoReply(limit)),
        }
    }

    /// A reply whose code begins with `class`.
    pub(crate) async fn expect(&mut self, command: &str, class: u16) -> Result<FtpReply, FtpError> {
        let reply = self.reply().await?;
        accept(command, reply, class)
    }

    pub(crate) async fn reply(&mut self) -> Result<FtpReply, FtpError> {
        self.reply_within(self.limit).await
    }

    /// The next reply; it is read whole, or the rest comes with the next call.
    pub(crate) async fn reply_within(&mut self, limit: Duration) -> Result<FtpReply, FtpError> {
        let end = Instant::now() + limit;
        loop {
            if let Some(reply) = self.take_reply()? {
                return Ok(reply);
            }
            let mut bytes = [0; 4096];
            let left = end.saturating_duration_since(Instant::now());
            match timeout(left, self.control.read(&mut bytes)).await {
                Ok(Ok(0)) => return Err(FtpError::Closed),
                Ok(Ok(count)) => self.received.extend_from_slice(&bytes[..count]),
                Ok(Err(error)) => return Err(broken(error)),
                Err(_) => return Err(FtpError::NoReply(limit)),
            }
        }
    }

    fn take_reply(&mut self) -> Result<Option<FtpReply>, FtpError> {
        let Some((reply, length)) = parse_reply(&self.received)? else {
            if self.received.len() > REPLY_SIZE {
                return Err(FtpError::NoFtp("a reply without an end".to_owned()));
            }
            return Ok(None);
        };
        self.received.drain(..length);
        Ok(Some(reply))
    }

    /// EPSV. The port that the node reserved.
    pub(crate) async fn epsv(&mut self) -> Result<u16, FtpError> {
        let reply = self.ask("EPSV").await?;
        let port = extended_port(&reply.text);
        port.ok_or(FtpError::Reply { command: "EPSV".to_owned(), reply })
    }

    /// PASV. The address that the node names.
    pub(crate) async fn pasv(&mut self) -> Result<SocketAddr, FtpError> {
        let reply = self.ask("PASV").await?;
        let address = passive_address(&reply.text);
        address.ok_or(FtpError::Reply { command: "PASV".to_owned(), reply })
    }

    /// The public address with this port.
    pub(crate) fn data_address(&self, port: u16) -> SocketAddr {
        (self.peer.ip(), port).into()
    }

    /// Opens a data connection, sends the command, and returns the connection after the reply 1xx.
    pub(crate) async fn begin(&mut self, command: &str, data: SocketAddr) -> Result<Channel, FtpError> {
        let stream = connect(data, self.limit.min(Duration::from_secs(3))).await?;
        let reply = self.command(command).await?;
        if reply.code / 100 != 1 {
            return Err(refusal(command, reply));
        }
        match &self.tls {
            Some(tls) if self.is_private => {
                Ok(Channel::Encrypted(Box::new(handshake(tls, stream, self.limit).await?)))
            }
            _ => Ok(Channel::Plain(stream)),
        }
    }

    async fn begin_passive(&mut self, command: &str) -> Result<Channel, FtpError> {
        let port = self.epsv().await?;
        self.begin(command, self.data_address(port)).await
    }

    /// Reads a data connection to its end, at most `most` bytes, and then the final reply.
    pub(crate) async fn read_all(&mut self, mut data: Channel, most: usize) -> Result<Vec<u8>, FtpError> {
        let mut content = Vec::new();
        let mut bytes = vec![0; 64 * 1024];
        loop {
            match timeout(self.limit, data.read(&mut bytes)).await {
                Ok(Ok(0)) => break,
                Ok(Ok(count)) => content.extend_from_slice(&bytes[..count]),
                Ok(Err(error)) => {
                    // The reply says why the node ended the transfer.
                    let reply = self.reply().await?;
                    return Err(if reply.code / 100 == 2 { broken(error) } else { refusal("data", reply) });
                }
                Err(_) => return Err(FtpError::NoReply(self.limit)),
            }
            if content.len() > most {
                // A long listing: its end does not matter.
                drop(data);
                self.reply().await?;
                return Ok(content);
            }
        }
        drop(data);
        self.expect("end of the transfer", 2).await?;
        Ok(content)
    }

    /// Downloads a file.
    pub(crate) async fn retrieve(&mut self, name: &str, most: usize) -> Result<Vec<u8>, FtpError> {
        let data = self.begin_passive(&format!("RETR {name}")).await?;
        self.read_all(data, most).await
    }

    /// Begins an upload over a new data connection.
    pub(crate) async fn begin_store(&mut self, name: &str) -> Result<Channel, FtpError> {
        self.begin_passive(&format!("STOR {name}")).await
    }

    /// Begins a download over a new data connection.
    pub(crate) async fn begin_retrieve(&mut self, name: &str) -> Result<Channel, FtpError> {
        self.begin_passive(&format!("RETR {name}")).await
    }

    /// Uploads a file and returns the time from the last byte to the reply.
    pub(crate) async fn store(&mut self, name: &str, content: &[u8]) -> Result<Duration, FtpError> {
        let mut data = self.begin_store(name).await?;
        match timeout(self.limit, data.write_all(content)).await {
            Ok(Ok(())) => self.finish_store(data).await,
            Ok(Err(error)) => {
                let reply = self.reply().await?;
                Err(if reply.code / 100 == 2 { broken(error) } else { refusal("STOR", reply) })
            }
            Err(_) => Err(FtpError::NoReply(self.limit)),
        }
    }

    /// Ends an upload in order, and waits for its reply.
    pub(crate) async fn finish_store(&mut self, mut data: Channel) -> Result<Duration, FtpError> {
        let start = Instant::now();
        // The reply tells whether the upload ended well.
        let _ = timeout(self.limit, data.finish()).await;
        if matches!(data, Channel::Encrypted(_)) {
            // New tickets come with the node's close_notify.
            let mut bytes = [0; 1024];
            while let Ok(Ok(1..)) = timeout(self.limit, data.read(&mut bytes)).await {}
        }
        self.expect("STOR", 2).await?;
        Ok(start.elapsed())
    }

    /// QUIT, without waiting long for its reply.
    pub(crate) async fn quit(mut self) {
        if self.send("QUIT").await.is_ok() {
            // The session ends with the connection in any case.
            let _ = self.reply_within(Duration::from_millis(500)).await;
        }
    }
}

fn accept(command: &str, reply: FtpReply, class: u16) -> Result<FtpReply, FtpError> {
    if reply.code / 100 == class { Ok(reply) } else { Err(refusal(command, reply)) }
}

fn refusal(command: &str, reply: FtpReply) -> FtpError {
    // The password is the argument of PASS.
    let verb = command.split(' ').next().unwrap_or_default();
    let command = if verb == "PASS" { verb } else { command };
    FtpError::Reply { command: command.to_owned(), reply }
}

fn broken(error: io::Error) -> FtpError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => FtpError::Closed,
        _ => FtpError::Broken(error),
    }
}

/// A TCP connection.
pub(crate) async fn connect(address: SocketAddr, limit: Duration) -> Result<TcpStream, FtpError> {
    match timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            // Only the time of small commands would suffer.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) => Err(match error.kind() {
            io::ErrorKind::ConnectionRefused => FtpError::Refused,
            io::ErrorKind::TimedOut => FtpError::Silent(limit),
            _ => FtpError::Unreachable(error),
        }),
        Err(_) => Err(FtpError::Silent(limit)),
    }
}

async fn handshake(
    tls: &SessionTls,
    stream: TcpStream,
    limit: Duration,
) -> Result<TlsStream<TcpStream>, FtpError> {
    let connector = TlsConnector::from(tls.config.clone());
    match timeout(limit, connector.connect(tls.name.clone(), stream)).await {
        Ok(done) => done.map_err(FtpError::Tls),
        Err(_) => Err(FtpError::NoReply(limit)),
    }
}

/// The first reply in the bytes, and its length. `None`: it is not complete.
fn parse_reply(bytes: &[u8]) -> Result<Option<(FtpReply, usize)>, FtpError> {
    let mut start = 0;
    let mut code = None;
    let mut text = Vec::new();
    while let Some(length) = bytes[start..].iter().position(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(&bytes[start..start + length]).trim_end().to_owned();
        start += length + 1;
        let number = line.get(..3).and_then(|digits| digits.parse::<u16>().ok());
        let rest = line.get(4..).unwrap_or_default().to_owned();
        let is_last = line.as_bytes().get(3) != Some(&b'-');
        match code {
            None => match number {
                Some(number) => code = Some(number),
                None => return Err(FtpError::NoFtp(line.chars().take(60).collect())),
            },
            Some(code) if number != Some(code) => {
                text.push(line.trim().to_owned());
                continue;
            }
            Some(_) => {}
        }
        text.push(rest);
        if let (true, Some(code)) = (is_last, code) {
            return Ok(Some((FtpReply { code, text: text.join(" ") }, start)));
        }
    }
    Ok(None)
}

/// The port of `Entering … (|||50001|)`.
fn extended_port(text: &str) -> Option<u16> {
    let inside = text.split_once("(|||")?.1;
    inside.split('|').next()?.parse().ok()
}

/// The address of `Entering … (192,0,2,1,195,80)`.
fn passive_address(text: &str) -> Option<SocketAddr> {
    let inside = text.split_once('(')?.1.split(')').next()?;
    let numbers: Vec<u8> = inside.split(',').map(|part| part.trim().parse().ok()).collect::<Option<_>>()?;
    let [a, b, c, d, high, low] = numbers[..] else { return None };
    Some((IpAddr::from([a, b, c, d]), u16::from(high) * 256 + u16::from(low)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_of_one_and_of_many_lines_are_cut_from_the_bytes() {
        let (reply, length) = parse_reply(b"220 ready\r\n331 x").unwrap().unwrap();
        assert_eq!((reply.code, reply.text.as_str(), length), (220, "ready", 11));
        let many = b"211-Features:\r\n EPSV\r\n211 End\r\n";
        let (reply, length) = parse_reply(many).unwrap().unwrap();
        assert_eq!((reply.text.as_str(), length), ("Features: EPSV End", many.len()));
        assert!(parse_reply(b"211-Features:\r\n EPSV\r\n").unwrap().is_none());
        assert!(parse_reply(b"SSH-2.0-OpenSSH\r\n").is_err());
    }

    #[test]
    fn passive_replies_are_read() {
        assert_eq!(extended_port("Entering Extended Passive Mode (|||50001|)"), Some(50001));
        assert_eq!(
            passive_address("Entering Passive Mode (192,0,2,1,195,80)."),
            Some("192.0.2.1:50000".parse().unwrap())
        );
        assert_eq!(passive_address("Entering Passive Mode (192,0,2,1,195)."), None);
    }

    #[test]
    fn an_error_does_not_show_the_password() {
        let reply = FtpReply { code: 530, text: "Login incorrect".to_owned() };
        assert_eq!(refusal("PASS secret", reply).to_string(), "PASS: 530 Login incorrect");
    }
}
