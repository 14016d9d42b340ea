//! Data connections: how they are opened, and the loops that copy files over them.

pub mod ascii;
pub mod coding;
pub mod connected;
pub mod copy;
mod early;
mod encrypted;
mod error;
pub mod passive;
mod splice;
pub mod stream;

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

pub use self::{coding::Coding, error::CopyError};
use self::{
    connected::{Arrived, Connected, Encryption, Socket},
    passive::Reservation,
};
use crate::{
    metrics,
    tls::{SessionReuse, Tls},
};

/// The arrangement of PASV, EPSV, PORT or EPRT for the next transfer. One transfer uses it.
pub enum DataPort {
    Passive(Reservation),
    /// The client's own address, already checked.
    Active(SocketAddr),
}

/// The reason why there is no data connection.
#[derive(Debug, thiserror::Error)]
pub enum NoDataConnection {
    #[error("no data connection in time")]
    Late(#[from] Elapsed),
    #[error("the data connection cannot be opened")]
    Failed(#[from] io::Error),
    #[error(
        "the passive port was given up, because another session of the same address waited for one, or \
         another node gets the port"
    )]
    GivenUp,
    #[error("the TLS handshake of the data connection failed")]
    Handshake(#[source] io::Error),
    /// The data connection did not resume a TLS session, or resumed that of another session.
    #[error("the data connection does not resume the control connection's TLS session (tls_data_reuse)")]
    NotResumed,
}

/// The encryption of a data connection, and the session to which it must belong.
pub struct Protection {
    pub tls: Arc<Tls>,
    pub session: SessionId,
    /// Whether the session's client can resume its TLS session.
    pub resumption: Arc<Resumption>,
    /// An upload that ends without close_notify counts as broken off.
    pub close_notify_required: bool,
}

/// What the node knows about the client's ability to resume its TLS session on data connections.
pub struct Resumption {
    /// True with TLS 1.2 on the control connection, whose tickets can be used repeatedly. With TLS 1.3,
    /// clients use a ticket once, and a client that does not read new tickets runs out of them.
    pub keeps_ticket: bool,
    has_resumed: AtomicBool,
}

impl Resumption {
    pub fn new(keeps_ticket: bool) -> Self {
        Self { keeps_ticket, has_resumed: AtomicBool::new(false) }
    }

    /// Returns true if the client can certainly resume. With `tls_data_reuse = preferred`, data connections
    /// that do not resume are then refused.
    fn is_certain(&self) -> bool {
        self.keeps_ticket && self.has_resumed.load(Ordering::Relaxed)
    }
}

impl DataPort {
    /// Returns true if the passive port was given up, because other sessions of the address waited for one.
    pub fn is_given_up(&self) -> bool {
        matches!(self, Self::Passive(reservation) if reservation.is_given_up())
    }

    /// Waits for the data connection, or opens it, and does its TLS handshake.
    ///
    /// # Errors
    /// No connection within `limit`, or connecting to the client or the TLS handshake fails.
    pub async fn connect(
        self,
        limit: Duration,
        protection: Option<Protection>,
    ) -> Result<Connected, NoDataConnection> {
        let arrived = match self {
            Self::Passive(reservation) => {
                timeout(limit, reservation.accept()).await?.ok_or(NoDataConnection::GivenUp)?
            }
            Self::Active(client) => {
                let socket = Socket::Registered(timeout(limit, dial(client)).await??);
                Arrived { socket, by_balancer: false, records: None }
            }
        };
        match (protection, arrived.records.is_some()) {
            (None, false) => Ok(Connected::plain(arrived)),
            // PROT C came after PASV. Without encryption, nothing proves that a connection from another
            // address is the client's.
            (None, true) => Err(NoDataConnection::NotResumed),
            (Some(protection), _) => protection.encrypt(arrived).await,
        }
    }
}

impl Protection {
    async fn encrypt(self, arrived: Arrived) -> Result<Connected, NoDataConnection> {
        let Self { tls, session, resumption, close_notify_required } = self;
        let Arrived { socket, by_balancer, records } = arrived;
        let mut stream = socket.register()?;
        let connected = |stream, records| {
            let encryption = Encryption { records, kernel_seals: tls.kernel_seals(), close_notify_required };
            Connected::encrypted(stream, encryption, by_balancer)
        };
        if let Some(records) = records {
            resumption.has_resumed.store(true, Ordering::Relaxed);
            metrics::data_tls_session(true);
            return Ok(connected(stream, *records));
        }
        let accepted = tls.accept_data(&mut stream, session).await;
        let (records, handshake) = accepted.map_err(NoDataConnection::Handshake)?;
        let is_proved = handshake.resumed == Some(session);
        metrics::data_tls_session(is_proved);
        let must_prove = match tls.settings.reuse {
            SessionReuse::Required => true,
            SessionReuse::Preferred => resumption.is_certain(),
            SessionReuse::Off => false,
        };
        if is_proved {
            resumption.has_resumed.store(true, Ordering::Relaxed);
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
