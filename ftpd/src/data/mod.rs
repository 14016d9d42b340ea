//! Data connections and what goes over them.

pub mod ascii;
pub mod connected;
mod encrypted;
pub mod passive;
pub mod progress;
mod splice;
pub mod stream;
pub mod transfer;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::session::SessionId;

use tokio::{
    net::{TcpSocket, TcpStream},
    time::{error::Elapsed, timeout},
};

use self::{
    connected::{Arrived, Connected, Encryption, Socket},
    passive::Reservation,
};
use crate::{
    metrics,
    tls::{SessionReuse, Tls},
};

/// What PASV, EPSV, PORT or EPRT arranged for the next transfer, which uses it up.
pub enum DataPort {
    Passive(Reservation),
    /// The client's own address, already checked.
    Active(SocketAddr),
}

/// Why there is no data connection.
#[derive(Debug, thiserror::Error)]
pub enum NoDataConnection {
    #[error("no data connection in time")]
    Late(#[from] Elapsed),
    #[error("the data connection cannot be opened")]
    Failed(#[from] io::Error),
    #[error("the passive port was given up, because another user of the same address waited for one")]
    Gone,
    #[error("the TLS handshake of the data connection failed")]
    Handshake(#[source] io::Error),
    /// It resumed no TLS session, or another client's.
    #[error("the data connection does not resume the control connection's TLS session (tls_data_reuse)")]
    NotResumed,
}

/// How a data connection is encrypted, and whose it has to be.
pub struct Protection {
    pub tls: Arc<Tls>,
    pub session: SessionId,
    /// Whether a data connection has resumed the session's TLS, and the client keeps the ticket with which it did.
    pub resumes: Arc<Resumes>,
    /// An upload ends with close_notify, or was cut off.
    pub close_notify_required: bool,
}

/// What is known of a session's data connections.
pub struct Resumes {
    /// The control connection has TLS 1.2, whose tickets can be used again and again. With TLS 1.3 clients use a ticket
    /// once, and one that reads no new ones runs out of them.
    pub keeps_ticket: bool,
    has_resumed: AtomicBool,
}

impl Resumes {
    pub fn new(keeps_ticket: bool) -> Self {
        Self { keeps_ticket, has_resumed: AtomicBool::new(false) }
    }

    /// Whether a data connection without the proof is refused where `preferred` is set.
    fn is_certain(&self) -> bool {
        self.keeps_ticket && self.has_resumed.load(Ordering::Relaxed)
    }
}

impl DataPort {
    /// Whether the port was taken away, because other sessions of the address waited for one.
    pub fn is_given_up(&self) -> bool {
        matches!(self, Self::Passive(reservation) if reservation.is_given_up())
    }

    /// The data connection.
    ///
    /// # Errors
    /// It does not come within `limit`, connecting to the client fails, or so does TLS.
    pub async fn connect(
        self,
        limit: Duration,
        protection: Option<Protection>,
    ) -> Result<Connected, NoDataConnection> {
        let arrived = match self {
            Self::Passive(reservation) => {
                timeout(limit, reservation.accept()).await?.ok_or(NoDataConnection::Gone)?
            }
            Self::Active(client) => {
                let socket = Socket::Watched(timeout(limit, dial(client)).await??);
                Arrived { socket, by_balancer: false, records: None }
            }
        };
        match (protection, arrived.records.is_some()) {
            (None, false) => Ok(Connected::plain(arrived)),
            // PROT C came after PASV: in the clear nothing proves a connection from another address.
            (None, true) => Err(NoDataConnection::NotResumed),
            (Some(protection), _) => protection.encrypt(arrived).await,
        }
    }
}

impl Protection {
    async fn encrypt(self, arrived: Arrived) -> Result<Connected, NoDataConnection> {
        let Self { tls, session, resumes, close_notify_required } = self;
        let Arrived { socket, by_balancer, records } = arrived;
        let mut stream = socket.watched()?;
        let connected = |stream, records| {
            let encryption = Encryption { records, kernel_seals: tls.kernel_seals(), close_notify_required };
            Connected::encrypted(stream, encryption, by_balancer)
        };
        if let Some(records) = records {
            resumes.has_resumed.store(true, Ordering::Relaxed);
            metrics::data_tls_session(true);
            return Ok(connected(stream, *records));
        }
        let accepted = tls.accept_data(&mut stream, session).await;
        let (records, handshake) = accepted.map_err(NoDataConnection::Handshake)?;
        let is_proved = handshake.resumed == Some(session);
        metrics::data_tls_session(is_proved);
        let must_prove = match tls.settings.reuse {
            SessionReuse::Required => true,
            SessionReuse::Preferred => resumes.is_certain(),
            SessionReuse::Off => false,
        };
        if is_proved {
            resumes.has_resumed.store(true, Ordering::Relaxed);
        } else if must_prove {
            metrics::data_connection_refused("not_resumed");
            return Err(NoDataConnection::NotResumed);
        }
        Ok(connected(stream, records))
    }
}

async fn dial(client: SocketAddr) -> io::Result<TcpStream> {
    let socket = if client.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    socket.connect(client).await
}

#[cfg(test)]
mod tests;
