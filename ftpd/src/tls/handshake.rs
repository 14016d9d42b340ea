//! The handshake of a data connection. Afterwards [`Records`] has the keys, and rustls sees no further bytes.

use std::{io, sync::Arc};

use rustls::{
    ConnectionTrafficSecrets, ServerConfig,
    kernel::KernelConnection,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, UnbufferedStatus},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::records::{KeySchedule, Records, Secrets, Version};

/// Bytes read at once. The client's messages fit; data of an early upload is read elsewhere.
const READ: usize = 4096;

/// Length of a record's header, and of its longest body (RFC 5246 section 6.2.3), in bytes.
const HEADER: usize = 5;
const LONGEST_BODY: usize = (1 << 14) + 2048;

/// The next action that rustls needs.
enum HandshakeStep {
    Continue,
    Send,
    Receive,
    Done,
}

/// Performs the server's side. `inspect` sees the finished handshake and returns true in its second field if
/// the client gets TLS 1.3 session tickets.
///
/// In TLS 1.3 the server sends session tickets after the handshake. They are not sent here but left to
/// [`Records`], because a client that uploads may never read. If such a client closes with unread tickets, or
/// before they arrive, its kernel resets the connection, and data that it has not sent yet is lost.
///
/// # Errors
/// The handshake failed and the client got an alert, or the connection ended.
pub(super) async fn accept<T>(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    config: Arc<ServerConfig>,
    inspect: impl FnOnce(&UnbufferedServerConnection) -> (T, bool),
) -> io::Result<(Records, T)> {
    let mut connection = UnbufferedServerConnection::new(config).map_err(invalid)?;
    let mut received = Vec::new();
    // Bytes of `received` already passed to rustls; always whole records.
    let mut shown = 0;
    let mut answer = Vec::new();
    loop {
        let UnbufferedStatus { discard, state, .. } = connection.process_tls_records(&mut received[..shown]);
        let next = match state {
            Ok(ConnectionState::EncodeTlsData(mut message)) => {
                encode(&mut answer, |space| message.encode(space));
                HandshakeStep::Continue
            }
            Ok(ConnectionState::TransmitTlsData(message)) => {
                message.done();
                HandshakeStep::Send
            }
            Ok(ConnectionState::BlockedHandshake) => HandshakeStep::Receive,
            Ok(ConnectionState::WriteTraffic(_)) => HandshakeStep::Done,
            // Data or close_notify before the end of the handshake.
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => {
                send_alert(stream, &mut connection, answer).await;
                return Err(invalid(error));
            }
        };
        received.drain(..discard);
        shown -= discard;
        match next {
            HandshakeStep::Continue => {}
            HandshakeStep::Send if connection.is_handshaking() || version(&connection) == Version::Tls12 => {
                stream.write_all(&answer).await?;
                answer.clear();
            }
            // TLS 1.3 tickets. They stay in `answer`.
            HandshakeStep::Send => {}
            HandshakeStep::Receive => {
                while record_length(&received[shown..]).is_none() {
                    received.reserve(READ);
                    if stream.read_buf(&mut received).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                shown += record_length(&received[shown..]).unwrap_or_default();
            }
            HandshakeStep::Done => break,
        }
    }
    let (result, gets_tickets) = inspect(&connection);
    let tickets = gets_tickets.then_some(answer);
    Ok((records(connection, received, tickets).map_err(invalid)?, result))
}

/// Length of the record at the front of `bytes`; `None` if it is incomplete. If `bytes` cannot be a record,
/// their whole length, so that rustls sees and refuses them.
fn record_length(bytes: &[u8]) -> Option<usize> {
    let [kind, _, _, high, low] = *bytes.first_chunk::<HEADER>()?;
    let body = usize::from(u16::from_be_bytes([high, low]));
    if !(20..=23).contains(&kind) || body > LONGEST_BODY {
        return Some(bytes.len());
    }
    (bytes.len() >= HEADER + body).then_some(HEADER + body)
}

/// Appends a message of rustls to `answer`.
fn encode(answer: &mut Vec<u8>, mut message: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>) {
    let start = answer.len();
    // With an empty buffer, rustls reports the size that it needs.
    if let Err(EncodeError::InsufficientSize(wanted)) = message(&mut []) {
        answer.resize(start + wanted.required_size, 0);
        let written = message(&mut answer[start..]).unwrap_or_default();
        answer.truncate(start + written);
    }
}

/// Sends the alert of a failed handshake. Ignores errors.
async fn send_alert(
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
        // The dropped tickets were the first records under this key. They were never sent, so the client
        // expects the next record with sequence number 0.
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
