//! Firewalls, routers and addresses that only a network of the test's own can have.
//!
//! The module has its own name, because builders without namespaces (nix/package.nix) skip it.

use super::*;

fn nft(rules: &str) {
    let status = Command::new("nft").arg(rules).status().expect("nft is installed");
    assert!(status.success(), "{rules}");
}

/// A cluster in the test's own network, where `rules` apply to all packets.
fn behind_firewall(test: &str, builder: fn() -> ClusterBuilder, check: fn(&Cluster)) {
    with_own_network(&format!("own_network::{test}"), || {
        nft("add table inet broken");
        nft("add chain inet broken input { type filter hook input priority 0 ; }");
        let cluster = builder().start();
        check(&cluster);
    });
}

fn drop_rule(rule: &str) {
    nft(&format!("add rule inet broken input {rule}"));
}

#[test]
fn a_firewall_drops_the_control_port() {
    with_own_network("own_network::a_firewall_drops_the_control_port", || {
        let network = Network::new("public");
        let (balancer, client) = (Host::new("lb"), Host::new("client"));
        balancer.connect("eth0", &network, &[([203, 0, 113, 10].into(), 24)]);
        client.connect("eth0", &network, &[([203, 0, 113, 50].into(), 24)]);
        balancer.run("nft", &["add table inet broken"]);
        balancer.run("nft", &["add chain inet broken input { type filter hook input priority 0 ; }"]);
        balancer.run("nft", &["add rule inet broken input tcp dport 21 drop"]);
        let address = SocketAddr::from(([203, 0, 113, 10], 21));
        let diagnosis = DoctorRun::new(address).timeout("1s").on(&client).run();
        diagnosis.assert_findings(&["port_silent"]);
        let nowhere = SocketAddr::from(([198, 51, 100, 1], 21));
        DoctorRun::new(nowhere).on(&client).run().assert_findings(&["port_unreachable"]);
    });
}

#[test]
fn a_name_has_an_ipv6_address_that_is_not_served() {
    with_own_network("own_network::a_name_has_an_ipv6_address_that_is_not_served", || {
        let directory = tempfile::tempdir().unwrap();
        let hosts = directory.path().join("hosts");
        std::fs::write(&hosts, "127.0.0.1 ftp.example.com\n::1 ftp.example.com\n").unwrap();
        let mounted = Command::new("mount").arg("--bind").arg(&hosts).arg("/etc/hosts").status().unwrap();
        assert!(mounted.success());
        let node = Node::standalone().user("demo", "secret").listen([127, 0, 0, 1].into()).start();
        let diagnosis = DoctorRun::new(node.address).host("ftp.example.com").run();
        diagnosis.assert_findings(&["no_tls", "port_refused"]);
        assert!(diagnosis.text_of("port_refused").starts_with("control [::1]:"), "{diagnosis}");
    });
}

#[test]
fn a_firewall_drops_the_ports_of_one_node() {
    behind_firewall("a_firewall_drops_the_ports_of_one_node", Cluster::builder, |cluster| {
        drop_rule(&format!("ip daddr {} tcp dport 20030-20059 drop", cluster.address().ip()));
        let diagnosis = doctor(cluster).run();
        diagnosis.assert_findings(&["no_tls", "passive_port_silent"]);
        let text = diagnosis.text_of("passive_port_silent");
        assert!(text.starts_with("passive ports 20030-20059: of ftp2: "), "{text}");
    });
}

#[test]
fn a_firewall_rejects_the_ports_of_one_node() {
    behind_firewall("a_firewall_rejects_the_ports_of_one_node", Cluster::builder, |cluster| {
        let address = cluster.address().ip();
        drop_rule(&format!("ip daddr {address} tcp dport 20060-20089 reject with tcp reset"));
        let diagnosis = doctor(cluster).run();
        diagnosis.assert_findings(&["no_tls", "passive_port_refused"]);
        let text = diagnosis.text_of("passive_port_refused");
        assert!(text.starts_with("passive ports 20060-20089: of ftp3: "), "{text}");
    });
}

#[test]
fn full_packets_are_lost() {
    behind_firewall("full_packets_are_lost", Cluster::builder, |cluster| {
        let address = cluster.address().ip();
        drop_rule(&format!("ip daddr {address} tcp dport 20000-20089 meta length > 1400 drop"));
        let diagnosis = doctor(cluster).timeout("3s").run();
        assert!(diagnosis.findings().contains(&"large_packets_lost"), "{diagnosis}");
        assert!(!diagnosis.findings().contains(&"passive_port_silent"), "{diagnosis}");
    });
}

#[test]
fn a_firewall_forgets_silent_connections() {
    behind_firewall(
        "a_firewall_forgets_silent_connections",
        || Cluster::builder().nodes(1),
        |cluster| {
            let address = cluster.address().ip();
            // From now on the kernel forgets connections after 4 s of silence, and drops their packets.
            for (key, value) in [("tcp_timeout_established", "4"), ("tcp_loose", "0")] {
                let path = format!("/proc/sys/net/netfilter/nf_conntrack_{key}");
                std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
            }
            drop_rule(&format!("ip daddr {address} tcp dport 2121 ct state invalid drop"));
            drop_rule(&format!("ip daddr {address} tcp dport 20000-20089 ct state invalid drop"));
            let diagnosis = doctor(cluster).timeout("3s").argument("--slow=12s").run();
            diagnosis.assert_findings(&["no_tls", "silent_control_dropped", "silent_data_cut"]);
        },
    );
}
