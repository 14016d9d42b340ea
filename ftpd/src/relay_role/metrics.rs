//! The metrics of the relay: those that only it has, and the table of all of them.

use std::time::Duration;

use ::metrics::{counter, gauge};
use common::metric::{Metric, REDIS_SECONDS, REGISTRY_CONNECTED, REGISTRY_WRITABLE};

use crate::metrics::row;

/// Every metric of `ftp-relay`.
pub(super) const METRICS: &[Metric] = &[
    row("ftp_relayed_total"),
    row("ftp_relayed"),
    row("ftp_relay_bytes_total"),
    row("ftp_relay_seconds"),
    row("ftp_relay_ended_total"),
    row("ftp_relay_refused_total"),
    Metric::counter(
        "ftp_data_connections_refused_total",
        "connections",
        "Data connections from trusted balancers that were refused.",
    )
    .labels(&[("reason", "proxy_header")]),
    Metric::gauge("ftp_relay_control_connections", "connections", "Open control connections."),
    Metric::counter(
        "ftp_relay_control_total",
        "connections",
        "Control connections that a node serves or has served.",
    )
    .labels(&[("to", "name of the node")]),
    Metric::counter(
        "ftp_connections_refused_total",
        "connections",
        "Control connections that no node has served.",
    )
    .labels(&[("reason", "too_many, no_node (no ready node, or none greeted), proxy_header")]),
    Metric::counter(
        "ftp_relay_nodes_avoided_total",
        "times",
        "Times that a node did not serve a control connection, so that new ones went to other nodes.",
    )
    .labels(&[
        ("node", "name of the node"),
        (
            "reason",
            "connect_timeout, connect (refused or unreachable), silent (no greeting within \
             `greeting_timeout`), closed (before its greeting)",
        ),
    ]),
    Metric::gauge("ftp_relay_nodes", "nodes", "Nodes in the map of the registry.")
        .labels(&[("state", "ready, not_ready (draining, or a required dependency fails)")]),
    Metric::counter(
        "ftp_relay_nft_writes_total",
        "writes",
        "Writes of the nftables map. Missing without `nft_map`.",
    )
    .labels(&[("result", "written, failed")]),
    Metric::gauge("ftp_dependency_up", "1 or 0", "1 if the dependency works, 0 if not.")
        .labels(&[("dependency", "port_map, listeners, registry, as in /readyz")]),
    Metric::gauge(
        "ftp_relay_map_age_seconds",
        "seconds",
        "Time since Redis last answered with the map of the passive ports. Missing before the first answer.",
    ),
    Metric::gauge("ftp_draining", "1 or 0", "1 while the relay drains. Missing before."),
    Metric::gauge("ftp_limit", "as the setting", "Configured limits.")
        .labels(&[("limit", "max_relayed, max_control_connections, serving_threads, admin_max_connections")]),
    Metric::counter(
        "ftp_limit_reached_total",
        "times",
        "Times that a limit refused something or made it wait.",
    )
    .labels(&[("limit", "the setting that was reached")]),
    REGISTRY_CONNECTED,
    REGISTRY_WRITABLE,
    REDIS_SECONDS,
];

/// Counts an open control connection until it is dropped.
pub(super) struct OpenControl(());

/// A node serves a control connection.
pub(super) fn control_opened(node: &str) -> OpenControl {
    counter!("ftp_relay_control_total", "to" => node.to_owned()).increment(1);
    gauge!("ftp_relay_control_connections").increment(1);
    OpenControl(())
}

impl Drop for OpenControl {
    fn drop(&mut self) {
        gauge!("ftp_relay_control_connections").decrement(1);
    }
}

pub(super) fn node_avoided(node: &str, reason: &'static str) {
    counter!("ftp_relay_nodes_avoided_total", "node" => node.to_owned(), "reason" => reason).increment(1);
}

pub(super) fn nodes(ready: usize, not_ready: usize) {
    gauge!("ftp_relay_nodes", "state" => "ready").set(ready as f64);
    gauge!("ftp_relay_nodes", "state" => "not_ready").set(not_ready as f64);
}

pub(super) fn map_age(age: Duration) {
    gauge!("ftp_relay_map_age_seconds").set(age.as_secs_f64());
}

pub(super) fn nft_written(is_written: bool) {
    let result = if is_written { "written" } else { "failed" };
    counter!("ftp_relay_nft_writes_total", "result" => result).increment(1);
}

#[cfg(test)]
mod tests {
    use super::METRICS;

    #[test]
    fn the_table_holds_every_metric_of_this_file_once() {
        let (source, _) = include_str!("metrics.rs").split_once("#[cfg(test)]").unwrap();
        let (_, functions) = source.split_once("\n];\n").unwrap();
        for name in functions.split('"').filter(|text| text.starts_with("ftp_")) {
            assert_eq!(METRICS.iter().filter(|metric| metric.name == name).count(), 1, "{name}");
        }
    }
}
