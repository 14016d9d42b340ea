//! The kernel data path, with the files of `nginx/kernel/` for the balancer and the nodes.

use std::{net::IpAddr, path::PathBuf};

use crate::nginx::{Balancer, fill};

/// Handling of forwarded traffic other than data connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherForwarding {
    Drop,
    Accept,
}

impl Balancer {
    /// The nftables rules that keep urgent data readable; see `nginx/kernel/README.md`.
    pub fn urgent_data_rules(&self) -> String {
        let ports = self.implicit_port.iter().chain([&self.control_port]).map(u16::to_string);
        fill("kernel/urgent-data.nft", &[("control_ports", &ports.collect::<Vec<_>>().join(", "))])
    }

    /// The nftables rules that lead data connections through the kernel, to the nodes' slices.
    pub fn data_path_rules(&self, other: OtherForwarding) -> String {
        let slices: Vec<_> = self.nodes.iter().map(|(_, node, slice)| format!("{slice} : {node}")).collect();
        self.rules(other, &fill("kernel/owners.nft", &[("elements", &slices.join(", "))]))
    }

    /// The same rules for nodes that lease their ports: `ftp-relay` fills the map [`OWNERS`].
    pub fn elastic_data_path_rules(&self, other: OtherForwarding) -> String {
        self.rules(other, "")
    }

    fn rules(&self, other: OtherForwarding, owners: &str) -> String {
        let v6 = self.nodes.first().is_some_and(|(_, address, _)| address.is_ipv6());
        let (family, protocol, address_type) =
            if v6 { ("ip6", "ipv6", "ipv6_addr") } else { ("ip", "ipv4", "ipv4_addr") };
        let each = |separator: &str, text: &dyn Fn(&str, &IpAddr) -> String| {
            let all: Vec<_> = self.nodes.iter().map(|(name, ip, _)| text(name, ip)).collect();
            all.join(separator)
        };
        let edges = self.nodes.iter().flat_map(|(_, _, slice)| [slice.from(), slice.to()]);
        let (from, to) = (edges.clone().min().unwrap_or(1), edges.max().unwrap_or(65535));
        let passive_ports = format!("{from}-{to}");
        let passive_ports = [("passive_ports", passive_ports.as_str())];
        let destination = format!("{family} daddr {{ {} }} ", self.address);
        let redirect = [("family", family), ("destination", &destination)];
        let redirect = fill("kernel/redirect.nft", &[&redirect[..], &passive_ports].concat());
        let counter = |name: &str, _: &IpAddr| format!("counter to_{name} {{ }}\ncounter from_{name} {{ }}");
        let values = [
            ("family", family),
            ("protocol", protocol),
            ("address_type", address_type),
            ("owners", owners),
            ("counters", &each("\n", &counter)),
            ("to_nodes", &each(", ", &|name, node| format!("{node} : \"to_{name}\""))),
            ("from_nodes", &each(", ", &|name, node| format!("{node} : \"from_{name}\""))),
            // No rule can translate an address into one of the other family.
            ("redirect", if self.address.is_ipv6() == v6 { &redirect } else { "" }),
            ("nodes", &each(", ", &|_, node| node.to_string())),
            ("other_forwarding", if other == OtherForwarding::Drop { "drop" } else { "accept" }),
        ];
        fill("kernel/data-path.nft", &[&values[..], &passive_ports].concat())
    }
}

/// The map of the owners in the rules, as the setting `nft_map` of `ftp-relay`.
pub const OWNERS: &str = "inet ftp_data_path owners";

/// The script that routes the nodes' replies.
pub fn replies_script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../nginx/kernel/replies.sh")
}
