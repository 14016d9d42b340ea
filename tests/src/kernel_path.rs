//! The kernel data path, with the files of `nginx/kernel/` for the balancer and the nodes.

use std::{net::IpAddr, path::PathBuf};

use common::node::PortRange;

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

    /// The nftables rules that lead data connections to the passive range through the kernel.
    pub fn data_path_rules(&self, passive_ports: &str, other: OtherForwarding) -> String {
        let v6 = self.nodes.first().is_some_and(|(_, address, _)| address.is_ipv6());
        let (family, protocol, address_type) =
            if v6 { ("ip6", "ipv6", "ipv6_addr") } else { ("ip", "ipv4", "ipv4_addr") };
        let each = |separator: &str, text: &dyn Fn(&str, &IpAddr, &PortRange) -> String| {
            let all: Vec<_> = self.nodes.iter().map(|(name, ip, slice)| text(name, ip, slice)).collect();
            all.join(separator)
        };
        let elements = each(", ", &|_, node, slice| format!("{slice} : {node}"));
        let destination = format!("{family} daddr {{ {} }} ", self.address);
        let passive_ports = [("passive_ports", passive_ports)];
        let redirect = [("family", family), ("destination", &destination)];
        let redirect = fill("kernel/redirect.nft", &[&redirect[..], &passive_ports].concat());
        let counter = |name: &str, _: &IpAddr, _: &PortRange| {
            format!("counter to_{name} {{ }}\ncounter from_{name} {{ }}")
        };
        let values = [
            ("family", family),
            ("protocol", protocol),
            ("address_type", address_type),
            ("owners", &fill("kernel/owners.nft", &[("elements", &elements)])),
            ("counters", &each("\n", &counter)),
            ("to_nodes", &each(", ", &|name, node, _| format!("{node} : \"to_{name}\""))),
            ("from_nodes", &each(", ", &|name, node, _| format!("{node} : \"from_{name}\""))),
            // No rule can translate an address into one of the other family.
            ("redirect", if self.address.is_ipv6() == v6 { &redirect } else { "" }),
            ("nodes", &each(", ", &|_, node, _| node.to_string())),
            ("other_forwarding", if other == OtherForwarding::Drop { "drop" } else { "accept" }),
        ];
        fill("kernel/data-path.nft", &[&values[..], &passive_ports].concat())
    }
}

/// The script that routes the nodes' replies.
pub fn replies_script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../nginx/kernel/replies.sh")
}
