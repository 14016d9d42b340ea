//! The kernel data path, with the files of `nginx/kernel/` for the balancer and the nodes.

use std::path::PathBuf;

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
        self.rules(other, &format!("elements = {{ {} }}", slices.join(", ")))
    }

    /// The same rules for nodes that lease their ports: `ftp-relay` fills the map [`OWNERS`].
    pub fn elastic_data_path_rules(&self, other: OtherForwarding) -> String {
        self.rules(other, "")
    }

    fn rules(&self, other: OtherForwarding, owners: &str) -> String {
        let v6 = self.nodes.first().is_some_and(|(_, address, _)| address.is_ipv6());
        let (family, protocol) = if v6 { ("ip6", "ipv6") } else { ("ip", "ipv4") };
        let nodes: Vec<_> = self.nodes.iter().map(|(_, address, _)| address.to_string()).collect();
        let edges = self.nodes.iter().flat_map(|(_, _, slice)| [slice.from(), slice.to()]);
        let (from, to) = (edges.clone().min().unwrap_or(1), edges.max().unwrap_or(65535));
        let ports = format!("{from}-{to}");
        let destination = format!("{family} daddr {{ {} }} ", self.address);
        let redirect = fill(
            "kernel/redirect.nft",
            &[("family", family), ("ports", &ports), ("destination", &destination)],
        );
        let values = [
            ("family", family),
            ("protocol", protocol),
            ("owners", owners),
            // No rule can translate an address into one of the other family.
            ("redirect", if self.address.is_ipv6() == v6 { &redirect } else { "" }),
            ("nodes", &nodes.join(", ")),
            ("ports", &ports),
            ("other_forwarding", if other == OtherForwarding::Drop { "drop" } else { "accept" }),
        ];
        fill("kernel/data-path.nft", &values)
    }
}

/// The name of the map of owners in the rules, as the setting `nft_map` of `ftp-relay`.
pub const OWNERS: &str = "inet ftp_data_path owners";

/// The script that routes the nodes' replies.
pub fn replies_script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../nginx/kernel/replies.sh")
}
