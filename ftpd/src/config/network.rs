//! Addresses, ports and balancers, and the part of the passive ports that this node owns.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use common::{
    node::{NodeName, PortRange},
    passive::{PassiveAssignment, PassiveLayout},
    registry::RedisOptions,
    settings::{SettingsError, Values},
};
use ipnet::IpNet;

use crate::auth::{Authentication, http::AuthdUrl};

#[derive(Debug)]
pub struct Network {
    /// Addresses of the control port and the passive ports.
    pub listen: Vec<IpAddr>,
    /// True if `listen` is the default. Only then an address family that the host lacks is left out.
    pub listen_is_default: bool,
    /// The control port; 0 takes a free one.
    pub port: u16,
    /// The control port of implicit FTPS. `None`: not offered.
    pub implicit_tls_port: Option<u16>,
    /// The passive ports on which this node listens. In a cluster they are those of all nodes.
    pub passive_ports: PortRange,
    /// The rule by which this node owns some of `passive_ports`.
    pub assignment: PassiveAssignment,
    /// True if other nodes share the registry with this node.
    pub is_in_cluster: bool,
    /// The address at which other nodes and relays reach this node. `None`: see `node_address`.
    pub node_address: Option<IpAddr>,
    /// True if nginx carries data connections, which breaks a promise.
    pub nginx_data_path: bool,
    /// The address that PASV announces. `None`: the address that the client reached.
    pub external_address: Option<IpAddr>,
    /// Networks of clients to which PASV does not announce `external_address`.
    pub internal_networks: Vec<IpNet>,
    /// Networks of the balancers, which must send a PROXY header.
    pub trusted_balancers: Vec<IpNet>,
    /// True if PORT and EPRT are offered.
    pub active_mode: bool,
    /// Redis or its sentinels, authd and this node's admin port, as far as the settings give their IP
    /// addresses. Active mode must not connect to them.
    pub services: Vec<SocketAddr>,
    /// Names that HOST accepts. Empty: every name.
    pub host_names: Vec<String>,
}

pub(super) fn network(
    values: &Values,
    authentication: &Authentication,
    name: &NodeName,
    redis: Option<&RedisOptions>,
) -> Result<Network, SettingsError> {
    let demo = matches!(authentication, Authentication::Demo);
    let listen: Vec<IpAddr> = if demo && !values.is_given("listen") {
        vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
    } else {
        values.list("listen")?
    };
    if listen.is_empty() {
        return Err(values.missing("listen", "a node needs an address to listen on"));
    }
    if demo && !listen.iter().all(IpAddr::is_loopback) {
        return Err(values.invalid(
            "listen",
            "without `user` or `user_file` every password is accepted, so the node may listen on loopback \
             only",
        ));
    }
    let range = passive_ports(values)?;
    // A standalone node may keep its registry in Redis, but it shares neither users nor storage.
    let is_in_cluster = matches!(authentication, Authentication::Authd { .. });
    let assignment = assignment(values, name, range, is_in_cluster)?;
    let passive_ports = match assignment {
        PassiveAssignment::Slice(slice) if !is_in_cluster => slice,
        _ => range,
    };
    let (port, implicit_tls_port) = (values.required("port")?, values.optional("implicit_tls_port")?);
    for (key, port) in [("port", Some(port)), ("implicit_tls_port", implicit_tls_port)] {
        if port.is_some_and(|port| passive_ports.contains(port)) {
            let reason = format_args!(
                "it is one of the passive ports, {passive_ports}, on which this node listens: choose another \
                 port, or other passive ports (passive_port_min, passive_port_max)"
            );
            return Err(values.invalid(key, reason));
        }
    }
    if implicit_tls_port == Some(port) {
        return Err(values.invalid(
            "implicit_tls_port",
            "it is the same as `port`: explicit and implicit FTPS need a port each",
        ));
    }
    Ok(Network {
        is_in_cluster,
        node_address: node_address(values, &listen)?,
        listen_is_default: !values.is_given("listen"),
        listen,
        port,
        implicit_tls_port,
        passive_ports,
        assignment,
        nginx_data_path: values.required("nginx_data_path")?,
        external_address: values.optional("external_address")?,
        internal_networks: values.list("internal_networks")?,
        trusted_balancers: trusted_balancers(values)?,
        active_mode: values.required("active_mode")?,
        services: services(values, authentication, redis)?,
        host_names: values.list("host_names")?,
    })
}

fn passive_ports(values: &Values) -> Result<PortRange, SettingsError> {
    PortRange::new(values.required("passive_port_min")?, values.required("passive_port_max")?).map_err(
        |error| {
            // The error names the setting that the operator gave.
            let key =
                if values.is_given("passive_port_max") { "passive_port_max" } else { "passive_port_min" };
            values.invalid(key, error)
        },
    )
}

/// The passive ports of the node `own`: a slice of `range` that a setting gives it, or blocks that it leases.
/// A node without a cluster has the whole range.
fn assignment(
    values: &Values,
    own: &NodeName,
    range: PortRange,
    is_in_cluster: bool,
) -> Result<PassiveAssignment, SettingsError> {
    let nodes: Vec<NodeName> = values.list("cluster_nodes")?;
    let size: Option<usize> = values.optional("cluster_size")?;
    let slice: Option<PortRange> = values.optional("passive_slice")?;
    let block_ports = match values.required("passive_block_ports")? {
        0 => return Err(values.invalid("passive_block_ports", "it cannot be zero")),
        ports => ports,
    };
    Ok(match (&nodes[..], size, slice) {
        ([], None, None) if is_in_cluster => {
            PassiveAssignment::Leased(PassiveLayout::new(range, block_ports))
        }
        ([], None, None) => PassiveAssignment::Slice(range),
        ([_, ..], None, None) => PassiveAssignment::Slice(slice_by_list(values, own, &nodes, range)?),
        ([], Some(size), None) => PassiveAssignment::Slice(slice_by_number(values, own, size, range)?),
        ([], None, Some(slice)) => {
            if !range.contains(slice.from()) || !range.contains(slice.to()) {
                let reason = format_args!(
                    "it is not within the passive range, {range} (passive_port_min, passive_port_max)"
                );
                return Err(values.invalid("passive_slice", reason));
            }
            PassiveAssignment::Slice(slice)
        }
        _ => {
            return Err(SettingsError::Conflict(
                "cluster_nodes, cluster_size, passive_slice: each gives the node its slice of the passive \
                 ports; set at most one of them"
                    .to_owned(),
            ));
        }
    })
}

/// The slice of the node at the position of its name in `cluster_nodes`.
fn slice_by_list(
    values: &Values,
    own: &NodeName,
    nodes: &[NodeName],
    range: PortRange,
) -> Result<PortRange, SettingsError> {
    if let Some(twice) = nodes.iter().enumerate().find(|(i, name)| nodes[..*i].contains(name)) {
        return Err(values.invalid("cluster_nodes", format_args!("{} is listed twice", twice.1)));
    }
    let position = nodes.iter().position(|name| name == own).ok_or_else(|| {
        values.invalid("cluster_nodes", format_args!("this node's name, {own}, is not in the list"))
    })?;
    range.slice(position, nodes.len()).ok_or_else(|| {
        values.invalid(
            "cluster_nodes",
            format_args!("{} nodes cannot share {} passive ports", nodes.len(), range.count()),
        )
    })
}

/// The slice of the node with the number at the end of its name, from 0.
fn slice_by_number(
    values: &Values,
    own: &NodeName,
    size: usize,
    range: PortRange,
) -> Result<PortRange, SettingsError> {
    let name = own.as_str();
    let digits = &name[name.trim_end_matches(|c: char| c.is_ascii_digit()).len()..];
    let position: usize = digits.parse().map_err(|_| {
        let reason = format_args!(
            "this node's name, {own}, must end in its number, from 0 to {} (ftp-0)",
            size.saturating_sub(1)
        );
        values.invalid("cluster_size", reason)
    })?;
    if position >= size {
        let reason = format_args!(
            "the number in this node's name, {own}, must be less than the number of nodes (the first node \
             has 0)"
        );
        return Err(values.invalid("cluster_size", reason));
    }
    range.slice(position, size).ok_or_else(|| {
        values.invalid(
            "cluster_size",
            format_args!("{size} nodes cannot share {} passive ports", range.count()),
        )
    })
}

fn node_address(values: &Values, listen: &[IpAddr]) -> Result<Option<IpAddr>, SettingsError> {
    let Some(address) = values.optional::<IpAddr>("node_address")? else { return Ok(None) };
    if address.is_unspecified() || address.is_multicast() {
        return Err(values.invalid("node_address", "no other host can connect to this address"));
    }
    if !listen.iter().any(|ip| ip.is_ipv4() == address.is_ipv4()) {
        let reason = "the node does not listen on any address of this family (`listen`)";
        return Err(values.invalid("node_address", reason));
    }
    Ok(Some(address))
}

fn trusted_balancers(values: &Values) -> Result<Vec<IpNet>, SettingsError> {
    let trusted: Vec<IpNet> = values.list("trusted_balancers")?;
    let behind_proxy: bool = values.required("behind_proxy")?;
    if !behind_proxy && values.is_given("behind_proxy") && !trusted.is_empty() {
        return Err(values.invalid("behind_proxy", "it is false, but trusted_balancers is set"));
    }
    if behind_proxy && trusted.is_empty() {
        // The reference system trusts any balancer in a private network.
        const PRIVATE: [&str; 6] =
            ["127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7"];
        // Each literal above parses.
        return Ok(PRIVATE.iter().filter_map(|network| network.parse().ok()).collect());
    }
    Ok(trusted)
}

/// Addresses of the cluster's services, which active mode must not reach. Host names are not resolved: their
/// addresses may change, and most clusters' settings have IP addresses.
fn services(
    values: &Values,
    authentication: &Authentication,
    redis: Option<&RedisOptions>,
) -> Result<Vec<SocketAddr>, SettingsError> {
    let mut services: Vec<SocketAddr> = values.optional("admin_listen")?.into_iter().collect();
    services.extend(redis.into_iter().flat_map(|redis| redis.servers.addresses()));
    if let Authentication::Authd { urls, .. } = authentication {
        services.extend(urls.iter().filter_map(AuthdUrl::address));
    }
    Ok(services)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, settings::SCHEMA};

    /// The passive ports on which a node listens and its assignment, or the error.
    fn ports(settings: &[&str]) -> Result<(String, PassiveAssignment), String> {
        let cluster =
            ["ftpd", "--redis-url=r", "--authd-urls=http://a:1", "--passive-port-max=50010"].into_iter();
        let flags = SCHEMA.command().get_matches_from(cluster.chain(settings.iter().copied()));
        let values = Values::collect(&SCHEMA, &flags, []).unwrap();
        let network = Config::new(&values).map_err(|error| error.to_string())?.network;
        Ok((network.passive_ports.to_string(), network.assignment))
    }

    fn slice(text: &str) -> PassiveAssignment {
        PassiveAssignment::Slice(text.parse().unwrap())
    }

    #[test]
    fn a_node_of_a_cluster_listens_on_the_whole_range_and_owns_blocks_or_a_slice() {
        for (settings, assignment) in [
            (&["--node-name=b", "--cluster-nodes=a,b,c"][..], slice("50003-50006")),
            (&["--node-name=ftp-0", "--cluster-size=3"], slice("50000-50002")),
            (&["--node-name=ftp-02", "--cluster-size=3"], slice("50007-50010")),
            (&["--node-name=9", "--cluster-size=11"], slice("50009-50009")),
            (&["--passive-slice=50004-50008"], slice("50004-50008")),
            (&["--passive-slice=50000-50010"], slice("50000-50010")),
        ] {
            assert_eq!(ports(settings), Ok(("50000-50010".to_owned(), assignment)), "{settings:?}");
        }
        let leased = |block_ports| {
            PassiveAssignment::Leased(PassiveLayout::new("50000-50010".parse().unwrap(), block_ports))
        };
        let all = "50000-50010".to_owned();
        assert_eq!(ports(&["--node-name=b"]), Ok((all.clone(), leased(5))));
        assert_eq!(ports(&["--passive-block-ports=2"]), Ok((all, leased(2))));
    }

    #[test]
    fn a_standalone_node_owns_all_ports_on_which_it_listens() {
        let listens = |settings: &[&str]| {
            let program = ["ftpd", "--standalone", "--passive-port-max=50010"].into_iter();
            let flags = SCHEMA.command().get_matches_from(program.chain(settings.iter().copied()));
            let network = Config::new(&Values::collect(&SCHEMA, &flags, []).unwrap()).unwrap().network;
            (network.passive_ports.to_string(), network.assignment)
        };
        assert_eq!(listens(&[]), ("50000-50010".to_owned(), slice("50000-50010")));
        assert_eq!(listens(&["--redis-url=r"]), ("50000-50010".to_owned(), slice("50000-50010")));
        let with_slice = listens(&["--passive-slice=50001-50002"]);
        assert_eq!(with_slice, ("50001-50002".to_owned(), slice("50001-50002")));
    }

    #[test]
    fn settings_of_passive_ports_that_contradict_each_other_are_refused() {
        for (settings, expected) in [
            (&["--cluster-nodes=a,b", "--cluster-size=2", "--node-name=a"][..], "at most one"),
            (&["--cluster-size=2", "--passive-slice=50000-50001", "--node-name=f0"], "at most one"),
            (&["--node-name=ftp", "--cluster-size=2"], "from 0 to 1"),
            (&["--node-name=ftp-2", "--cluster-size=2"], "less than"),
            (&["--node-name=ftp-0", "--cluster-size=0"], "less than"),
            (&["--node-name=ftp-0", "--cluster-size=12"], "12 nodes cannot share 11"),
            (&["--passive-slice=50000-50011"], "not within the passive range"),
            (&["--passive-block-ports=0"], "zero"),
            (&["--passive-slice=50000-50001", "--port=50005"], "passive ports, 50000-50010"),
            (&["--node-address=0.0.0.0"], "node_address"),
            (&["--node-address=::1", "--listen=10.0.0.1"], "family"),
        ] {
            let error = ports(settings).unwrap_err();
            assert!(error.contains(expected), "{settings:?}: {error}");
        }
    }
}
