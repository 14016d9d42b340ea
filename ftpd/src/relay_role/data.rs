//! Data connections: the client's address, and the way to the owner of the port.

use std::{net::SocketAddr, sync::Arc};

use tokio::net::TcpStream;

use crate::{
    client_address::{ConnectionAddresses, NoClientAddress, TrustedBalancers},
    connection_log::ConnectionLog,
    metrics,
    protocol::relayed::Relayed,
    relay::{self, Relay},
};

/// The state that all data connections share.
pub(super) struct DataDoor {
    pub(super) relay: Arc<Relay>,
    pub(super) balancers: Arc<TrustedBalancers>,
    pub(super) log: ConnectionLog,
}

impl DataDoor {
    /// Carries one connection to the owner of the passive port until it ends.
    pub(super) async fn serve(&self, mut client: TcpStream, peer: SocketAddr, port: u16) {
        // From now on a client whose connection is dropped sees a reset, never an end of file.
        if let Err(error) = relay::reset_on_close(&client) {
            log::debug!(peer:% = peer, port; "data connection lost: {error}");
            return;
        }
        match self.balancers.addresses_of(&mut client, peer).await {
            Ok(ConnectionAddresses { client: source, reached }) => {
                self.relay.carry(client, Relayed { client: source, reached, port }).await;
            }
            // A health check of the balancer in front.
            Err(NoClientAddress::ClosedByPeer | NoClientAddress::BalancersOwn) => {}
            Err(error) => {
                metrics::data_connection_refused("proxy_header");
                if self.log.may_log("data_proxy_header", peer.ip()) {
                    log::warn!(peer:% = peer, port; "data connection refused: {error}");
                }
            }
        }
    }
}
