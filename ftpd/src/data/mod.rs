//! Data connections and what goes over them.

pub mod ascii;
pub mod passive;
pub mod progress;
mod splice;
pub mod transfer;

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpSocket, TcpStream},
    time::{error::Elapsed, timeout},
};

use self::passive::Reservation;

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
    #[error("the passive port is gone")]
    Gone,
}

impl DataPort {
    /// The data connection, for blocking use on a thread of its own.
    ///
    /// # Errors
    /// It does not come within `limit`, or connecting to the client fails.
    pub async fn connect(self, limit: Duration) -> Result<std::net::TcpStream, NoDataConnection> {
        let stream = match self {
            Self::Passive(reservation) => {
                timeout(limit, reservation.accept()).await?.ok_or(NoDataConnection::Gone)?
            }
            Self::Active(client) => timeout(limit, dial(client)).await??,
        };
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

async fn dial(client: SocketAddr) -> io::Result<TcpStream> {
    let socket = if client.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    socket.connect(client).await
}

#[cfg(test)]
mod tests;
