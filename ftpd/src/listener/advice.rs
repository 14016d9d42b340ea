//! Advice for the error of an address on which a program cannot listen.

use std::{io, net::SocketAddr};

/// Advice for an address on which a program cannot listen; it follows the address in an error's text.
pub(crate) fn advice(address: &SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(" (`ss -ltnp 'sport = :{}'` shows the process that listens there)", address.port())
        }
        io::ErrorKind::AddrNotAvailable => {
            " (this host does not have this address: see the settings listen and admin_listen)".to_owned()
        }
        _ if (1..1024).contains(&address.port()) => {
            " (ports below 1024 need CAP_NET_BIND_SERVICE; higher ports do not)".to_owned()
        }
        _ => String::new(),
    }
}
