//! The address at which other nodes and relays reach this node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Addresses of documentation (RFC 5737, RFC 3849), which no host has: the route to them is the default
/// route.
const ELSEWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// The address of a node that listens on `listen` and has no setting `node_address`: its only address if that
/// is a specific one; otherwise the address from which it reaches Redis; if that is a loopback address, the
/// one with which it reaches other networks. `redis` is empty if the addresses of Redis are not known.
pub(crate) fn detect(listen: &[IpAddr], redis: &[SocketAddr]) -> IpAddr {
    if let [only] = listen
        && !only.is_unspecified()
    {
        return *only;
    }
    choose(listen, redis, source_of)
}

fn choose(
    listen: &[IpAddr],
    redis: &[SocketAddr],
    source_of: impl Fn(SocketAddr) -> Option<IpAddr>,
) -> IpAddr {
    let listens_on = |address: &IpAddr| {
        listen.iter().any(|own| own == address || own.is_unspecified() && own.is_ipv4() == address.is_ipv4())
    };
    let elsewhere = ELSEWHERE.map(|address| SocketAddr::new(address, 9));
    let sources = redis.iter().copied().chain(elsewhere).filter_map(source_of);
    let is_reachable = |address: &IpAddr| !address.is_loopback() && listens_on(address);
    let specific = listen.iter().copied().filter(|own| !own.is_unspecified());
    let by_route = sources.into_iter().find(is_reachable).or_else(|| specific.clone().find(is_reachable));
    by_route.or_else(|| specific.clone().next()).unwrap_or_else(|| {
        if listen.iter().any(IpAddr::is_ipv4) {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        }
    })
}

/// The address from which this host would send to `address`.
///
/// Connecting a UDP socket sends nothing; the kernel chooses the source address.
fn source_of(address: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match address.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(address).ok()?;
    Some(socket.local_addr().ok()?.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_the_only_specific_one_or_follows_the_routes() {
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let redis = |text: &str| vec![SocketAddr::new(ip(text), 6379)];
        // A host with a loopback address, 10.0.0.7 towards 10.0.0.0/8, and 198.51.100.7 and 2001:db8:1::7 to
        // other networks.
        let routes = |to: SocketAddr| {
            Some(ip(match to.ip() {
                IpAddr::V4(to) if to.is_loopback() => "127.0.0.1",
                IpAddr::V4(to) if to.octets()[0] == 10 => "10.0.0.7",
                IpAddr::V4(_) => "198.51.100.7",
                IpAddr::V6(_) => "2001:db8:1::7",
            }))
        };
        for (listen, redis, expected) in [
            (&["0.0.0.0", "::"][..], redis("10.0.0.2"), "10.0.0.7"),
            (&["0.0.0.0", "::"], redis("127.0.0.1"), "198.51.100.7"),
            (&["0.0.0.0", "::"], Vec::new(), "198.51.100.7"),
            (&["::"], redis("10.0.0.2"), "2001:db8:1::7"),
            (&["10.0.0.7", "198.51.100.7"], redis("127.0.0.1"), "198.51.100.7"),
            // Neither route has an address on which the node listens.
            (&["10.0.0.8", "10.0.0.9"], redis("10.0.0.2"), "10.0.0.8"),
            (&["127.0.0.5", "127.0.0.6"], redis("127.0.0.1"), "127.0.0.5"),
        ] {
            let listen: Vec<IpAddr> = listen.iter().map(|text| ip(text)).collect();
            assert_eq!(choose(&listen, &redis, routes), ip(expected), "{listen:?} {redis:?}");
        }
        assert_eq!(choose(&[ip("0.0.0.0")], &redis("10.0.0.2"), |_| None), ip("127.0.0.1"));
        assert_eq!(choose(&[ip("::")], &[], |_| None), ip("::1"));
    }

    #[test]
    fn a_node_on_one_specific_address_has_that_address() {
        assert_eq!(detect(&["127.3.4.5".parse().unwrap()], &[]).to_string(), "127.3.4.5");
        let by_route = detect(&["0.0.0.0".parse().unwrap()], &[]);
        assert!(by_route.is_ipv4() && !by_route.is_unspecified(), "{by_route}");
    }
}
