//! The networks that count as one client in limits per address.

use std::net::{IpAddr, Ipv6Addr};

/// The network whose clients share a limit: the IPv4 address itself, or the first address of the IPv6 /64
/// network. A site has at least a /64 (RFC 6177), so a client can use any of 2^64 addresses.
///
/// An IPv4-mapped IPv6 address counts as the IPv4 address.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_ipv6_64_count_together_and_ipv4_addresses_do_not() {
        for (address, network) in [
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2::", "2001:db8:1:2::"),
            ("2001:db8:1:3::1", "2001:db8:1:3::"),
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
        ] {
            let parsed: IpAddr = address.parse().unwrap();
            assert_eq!(network_of(parsed).to_string(), network, "{address}");
        }
    }
}
