//! The handshake of a data connection, after which its keys are ours: rustls gets nothing that comes
//! after it.

use std::{io, sync::Arc};

use rustls::{
    ConnectionTrafficSecrets, ServerConfig,
    kernel::KernelConnection,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, UnbufferedStatus},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::records::{KeySchedule, Records, Secrets, Version};

/// What is read at once: the client's messages fit, and an early upload has other buffers to go to.
const READ: usize = 4096;

/// A record's header, and the most that it may announce (RFC 5246 section 6.2.3).
const HEADER: usize = 5;
const LONGEST_BODY: usize = (1 << 14) + 2048;

/// What rustls wants next.
enum Next {
    Go,
    Send,
    Receive,
    Done,
}

/// Does the server's side. `look` sees the connection when it is over, and says whether the client gets session
/// tickets of TLS 1.3.
///
/// TLS 1.3 ends with what the server says unasked: session tickets. They are not sent but left to the
/// [`Records`], since a client that uploads need not read at all. One that closes with them unread, or
/// before they come, has its connection reset, which loses what its kernel has not sent so far.
///
/// # Errors
/// The handshake failed; the client was told why. Or the connection ended.
pub(super) async fn accept<T>(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    config: Arc<ServerConfig>,
    look: impl FnOnce(&UnbufferedServerConnection) -> (T, bool),
) -> io::Result<(Records, T)> {
    let mut connection = UnbufferedServerConnection::new(config).map_err(invalid)?;
    let mut received = Vec::new();
    // So much of it has rustls been shown: whole records, the last of them needed.
    let mut shown = 0;
    let mut answer = Vec::new();
    loop {
        let UnbufferedStatus { discard, state, .. } = connection.process_tls_records(&mut received[..shown]);
        let next = match state {
            Ok(ConnectionState::EncodeTlsData(mut message)) => {
                encode(&mut answer, |space| message.encode(space));
                Next::Go
            }
            Ok(ConnectionState::TransmitTlsData(message)) => {
                message.done();
                Next::Send
            }
            Ok(ConnectionState::BlockedHandshake) => Next::Receive,
            Ok(ConnectionState::WriteTraffic(_)) => Next::Done,
            // Data, or an end: neither has been shown before the handshake is over.
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => {
                tell(stream, &mut connection, answer).await;
                return Err(invalid(error));
            }
        };
        received.drain(..discard);
        shown -= discard;
        match next {
            Next::Go => {}
            Next::Send if connection.is_handshaking() || version(&connection) == Version::Tls12 => {
                stream.write_all(&answer).await?;
                answer.clear();
            }
            Next::Send => {}
            Next::Receive => {
                while record(&received[shown..]).is_none() {
                    received.reserve(READ);
                    if stream.read_buf(&mut received).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                shown += record(&received[shown..]).unwrap_or_default();
            }
            Next::Done => break,
        }
    }
    let (seen, gets_tickets) = look(&connection);
    let tickets = gets_tickets.then_some(answer);
    Ok((records(connection, received, tickets).map_err(invalid)?, seen))
}

/// The length of the record at the front of `bytes`, if it is whole. Bytes that cannot be a record
/// are rustls's to refuse.
fn record(bytes: &[u8]) -> Option<usize> {
    let [kind, _, _, high, low] = *bytes.first_chunk::<HEADER>()?;
    let body = usize::from(u16::from_be_bytes([high, low]));
    if !(20..=23).contains(&kind) || body > LONGEST_BODY {
        return Some(bytes.len());
    }
    (bytes.len() >= HEADER + body).then_some(HEADER + body)
}

/// Appends what rustls has to say to `answer`.
fn encode(answer: &mut Vec<u8>, mut message: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>) {
    let start = answer.len();
    // Asked without space it says how much it wants.
    if let Err(EncodeError::InsufficientSize(wanted)) = message(&mut []) {
        answer.resize(start + wanted.required_size, 0);
        let written = message(&mut answer[start..]).unwrap_or_default();
        answer.truncate(start + written);
    }
}

/// Sends the alert that a failed handshake leaves. Whether it arrives changes nothing.
async fn tell(
    stream: &mut (impl AsyncWrite + Unpin),
    connection: &mut UnbufferedServerConnection,
    mut answer: Vec<u8>,
) {
    while let Ok(ConnectionState::EncodeTlsData(mut message)) = connection.process_tls_records(&mut []).state
    {
        encode(&mut answer, |space| message.encode(space));
    }
    let _ = stream.write_all(&answer).await;
}

fn records(
    connection: UnbufferedServerConnection,
    received: Vec<u8>,
    tickets: Option<Vec<u8>>,
) -> Result<Records, rustls::Error> {
    let version = version(&connection);
    let (secrets, schedule) = connection.dangerous_into_kernel_connection()?;
    let [mut sending, receiving] =
        [secrets.tx, secrets.rx].map(|(sequence, keys)| Secrets { keys, sequence });
    if tickets.is_none() && version == Version::Tls13 {
        // Tickets are the first records under this key. They are dropped here without having been sent, so
        // that their numbers are free, and the client expects the first record with number 0.
        sending.sequence = 0;
    }
    let records = Records::new(version, sending, &receiving, Box::new(schedule), received)?;
    Ok(records.after(tickets.unwrap_or_default()))
}

fn version(connection: &UnbufferedServerConnection) -> Version {
    match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => Version::Tls13,
        _ => Version::Tls12,
    }
}

impl KeySchedule for KernelConnection<ServerConnectionData> {
    fn next_sending(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        self.update_tx_secret().map(|(_, keys)| keys)
    }

    fn next_receiving(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        self.update_rx_secret().map(|(_, keys)| keys)
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
