//! The files of each host of a new cluster.

use std::net::IpAddr;

use super::init::{Host, InitArguments, Kind, Secrets};

/// Where the daemons find their secrets: systemd copies them there (`LoadCredential` of the packages' units).
fn credential(unit: &str, name: &str) -> String {
    format!("/run/credentials/{unit}.service/{name}")
}

/// The hosts: the backend first, because the others need it.
pub(super) fn hosts(cluster: &InitArguments, secrets: &Secrets) -> Vec<Host> {
    let nodes = (0..cluster.nodes.len()).map(|index| node(cluster, secrets, index));
    [backend(cluster, secrets)].into_iter().chain(nodes).chain([balancer(cluster, secrets)]).collect()
}

fn backend(cluster: &InitArguments, secrets: &Secrets) -> Host {
    let address = bracketed(cluster.backend);
    let authd = [
        format!("listen = \"{address}:5160\""),
        format!("redis_url = \"{address}:6379\""),
        format!("redis_password_file = \"{}\"", credential("authd", "redis-password")),
        format!("node_token_file = \"{}\"", credential("authd", "node-token")),
        format!("admin_token_file = \"{}\"", credential("authd", "admin-token")),
    ];
    let ftpctl = [
        format!("url = \"http://{address}:5160\""),
        "token_file = \"/etc/distributed-ftp/admin/admin-token\"".to_owned(),
    ];
    let redis = [
        format!("bind {} 127.0.0.1", cluster.backend),
        format!("requirepass {}", secrets.redis_password.trim()),
        "# Users of the API must survive a restart, and no key may be evicted.".to_owned(),
        "appendonly yes".to_owned(),
        "save \"\"".to_owned(),
        "maxmemory-policy noeviction".to_owned(),
    ];
    let clients = cluster.nodes.iter().map(|(_, node)| format!(" {node}(rw,sync,no_subtree_check)"));
    let exports = format!("/srv/ftp{}\n", clients.collect::<String>());
    let nodes = node_addresses(cluster);
    let registry = format!("{}, {nodes}", cluster.balancer);
    let rules = firewall(
        cluster.backend,
        &[(Some(&registry), "6379"), (Some(&nodes), "5160"), (Some(&nodes), "2049")],
    );
    Host {
        name: "backend".to_owned(),
        files: vec![
            ("etc/distributed-ftp/authd.toml", Kind::Public, lines(&authd)),
            ("etc/distributed-ftp/ftpctl.toml", Kind::Public, lines(&ftpctl)),
            ("etc/distributed-ftp/secrets/node-token", Kind::Secret, secrets.node_token.clone()),
            ("etc/distributed-ftp/secrets/redis-password", Kind::Secret, secrets.redis_password.clone()),
            ("etc/distributed-ftp/admin/admin-token", Kind::Secret, secrets.admin_token.clone()),
            ("etc/distributed-ftp/redis.conf", Kind::Secret, lines(&redis)),
            ("etc/distributed-ftp/firewall.nft", Kind::Public, rules),
            ("etc/exports.d/distributed-ftp.exports", Kind::Public, exports),
        ],
        commands: vec![
            "apt install redis-server nfs-kernel-server ./distributed-ftp-{authd,ftpctl}_*.deb".to_owned(),
            COPY.to_owned(),
            "install -o redis -g redis -m 600 /etc/distributed-ftp/redis.conf /etc/redis/distributed-ftp.conf"
                .to_owned(),
            "echo 'include /etc/redis/distributed-ftp.conf' >>/etc/redis/redis.conf".to_owned(),
            "install -d -o 2121 -g 2121 -m 750 /srv/ftp && exportfs -ra".to_owned(),
            FIREWALL.to_owned(),
            "systemctl restart redis-server && systemctl enable --now authd".to_owned(),
        ],
    }
}

fn node(cluster: &InitArguments, secrets: &Secrets, index: usize) -> Host {
    let (name, address) = &cluster.nodes[index];
    let (backend, (from, to)) = (bracketed(cluster.backend), cluster.passive);
    let prefix = if cluster.balancer.is_ipv4() { 32 } else { 128 };
    let ftpd = [
        format!("node_name = \"{name}\""),
        format!("listen = [\"{address}\"]"),
        "implicit_tls_port = 990".to_owned(),
        "# The range of the whole cluster. The node leases blocks of it in Redis.".to_owned(),
        format!("passive_port_min = {from}"),
        format!("passive_port_max = {to}"),
        format!("external_address = \"{}\"", cluster.public),
        format!("trusted_balancers = [\"{}/{prefix}\"]", cluster.balancer),
        format!("admin_listen = \"{}:9121\"", bracketed(*address)),
        "root = \"/srv/ftp\"".to_owned(),
        "create_homes = true".to_owned(),
        format!("redis_url = \"{backend}:6379\""),
        format!("redis_password_file = \"{}\"", credential("ftpd", "redis-password")),
        format!("authd_urls = [\"http://{backend}:5160\"]"),
        format!("authd_token_file = \"{}\"", credential("ftpd", "node-token")),
        "tls_certificates = [\"/etc/distributed-ftp/tls/certificate.pem\"]".to_owned(),
        "tls_keys = [\"/etc/distributed-ftp/tls/key.pem\"]".to_owned(),
    ];
    // Why these options: docs/deployment-linux.md.
    let mount = format!(
        "[Unit]\nDescription=Files of Distributed FTP\nWants=network-online.target\n\
         After=network-online.target\n\n\
         [Mount]\nWhat={backend}:/srv/ftp\nWhere=/srv/ftp\nType=nfs4\n\
         Options=vers=4.2,hard,nodev,nosuid,noexec,noatime,lookupcache=positive,acregmin=1,acdirmin=1,\
         acregmax=5,acdirmax=5\n\n[Install]\nWantedBy=remote-fs.target\n"
    );
    // authd and Redis may come up later; only the storage is needed before the start.
    let drop_in = "[Unit]\nRequires=srv-ftp.mount\nAfter=srv-ftp.mount\n";
    let (balancer, peers) = (cluster.balancer.to_string(), node_addresses(cluster));
    let data = format!("{from}-{to}");
    let doors = format!("{balancer}, {peers}");
    let backend = cluster.backend.to_string();
    let open = [(Some(&balancer[..]), "21, 990"), (Some(&doors), &data), (Some(&backend), "9121")];
    let rules = firewall(*address, &open);
    Host {
        name: name.to_string(),
        files: vec![
            ("etc/distributed-ftp/ftpd.toml", Kind::Public, lines(&ftpd)),
            ("etc/distributed-ftp/secrets/node-token", Kind::Secret, secrets.node_token.clone()),
            ("etc/distributed-ftp/secrets/redis-password", Kind::Secret, secrets.redis_password.clone()),
            ("etc/distributed-ftp/tls/certificate.pem", Kind::Public, secrets.certificate.clone()),
            ("etc/distributed-ftp/tls/key.pem", Kind::Secret, secrets.key.clone()),
            ("etc/distributed-ftp/firewall.nft", Kind::Public, rules),
            ("etc/systemd/system/srv-ftp.mount", Kind::Public, mount),
            ("etc/systemd/system/ftpd.service.d/storage.conf", Kind::Public, drop_in.to_owned()),
            (SYSCTL, Kind::Public, reserved(cluster)),
        ],
        commands: vec![
            "apt install nfs-common ./distributed-ftp-ftpd_*.deb".to_owned(),
            COPY.to_owned(),
            "chmod 755 /etc/distributed-ftp/tls && chown distributed-ftp /etc/distributed-ftp/tls/key.pem"
                .to_owned(),
            format!("sysctl -p /{SYSCTL}"),
            FIREWALL.to_owned(),
            "systemctl daemon-reload && systemctl enable --now srv-ftp.mount ftpd".to_owned(),
        ],
    }
}

fn balancer(cluster: &InitArguments, secrets: &Secrets) -> Host {
    let (from, to) = cluster.passive;
    let relay = [
        format!("passive_port_min = {from}"),
        format!("passive_port_max = {to}"),
        "control_port = 21".to_owned(),
        "implicit_tls_port = 990".to_owned(),
        "# The address that the nodes trust.".to_owned(),
        format!("source_address = \"{}\"", cluster.balancer),
        format!("redis_url = \"{}:6379\"", bracketed(cluster.backend)),
        format!("redis_password_file = \"{}\"", credential("ftp-relay", "redis-password")),
        format!("admin_listen = \"{}:9122\"", bracketed(cluster.balancer)),
        "drain_timeout = \"10s\"".to_owned(),
    ];
    let data = format!("{from}-{to}");
    let backend = cluster.backend.to_string();
    let open = [(None, "21, 990"), (None, &data[..]), (Some(&backend[..]), "9122")];
    Host {
        name: "balancer".to_owned(),
        files: vec![
            ("etc/distributed-ftp/ftp-relay.toml", Kind::Public, lines(&relay)),
            ("etc/distributed-ftp/secrets/redis-password", Kind::Secret, secrets.redis_password.clone()),
            ("etc/distributed-ftp/firewall.nft", Kind::Public, firewall(cluster.balancer, &open)),
            (SYSCTL, Kind::Public, reserved(cluster)),
        ],
        commands: vec![
            "apt install ./distributed-ftp-ftp-relay_*.deb".to_owned(),
            COPY.to_owned(),
            format!("sysctl -p /{SYSCTL}"),
            FIREWALL.to_owned(),
            "systemctl enable --now ftp-relay".to_owned(),
        ],
    }
}

/// Run in the host's folder.
const COPY: &str = "cp -r etc /";
const FIREWALL: &str = "nft -f /etc/distributed-ftp/firewall.nft   # and include it in /etc/nftables.conf";
const SYSCTL: &str = "etc/sysctl.d/60-distributed-ftp.conf";

fn reserved(cluster: &InitArguments) -> String {
    let (from, to) = cluster.passive;
    format!(
        "# Without it an outgoing connection can hold one of these ports when the daemon starts.\n\
         net.ipv4.ip_local_reserved_ports = {from}-{to}\n"
    )
}

/// A table of nftables that closes the ports of this host's daemons to all others. It allows nothing that
/// another table refuses, and leaves every other port alone.
fn firewall(own: IpAddr, open: &[(Option<&str>, &str)]) -> String {
    let family = if own.is_ipv4() { "ip" } else { "ip6" };
    let mut accepted = String::new();
    let mut ports = Vec::new();
    for (from, to) in open {
        let source = from.map(|from| format!("{family} saddr {{ {from} }} ")).unwrap_or_default();
        accepted += &format!("        {source}tcp dport {{ {to} }} accept\n");
        ports.push(*to);
    }
    format!(
        "# Closes the ports of Distributed FTP to other hosts. Add Prometheus (5160, 9121, 9122) and\n\
         # administrators (5160) where they are not on the backend's host.\n\
         table inet distributed_ftp\ndelete table inet distributed_ftp\n\n\
         table inet distributed_ftp {{\n    chain input {{\n\
         \x20       type filter hook input priority filter; policy accept;\n\
         \x20       iifname \"lo\" accept\n{accepted}\
         \x20       tcp dport {{ {} }} drop\n    }}\n}}\n",
        ports.join(", ")
    )
}

fn node_addresses(cluster: &InitArguments) -> String {
    cluster.nodes.iter().map(|(_, address)| address.to_string()).collect::<Vec<_>>().join(", ")
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

fn lines(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}
