//! The table of settings: every key of `ftp-relay` with its form, default and meaning.

mod limits;
mod manual;

use common::settings::{
    ADMIN_HEADER_TIMEOUT, ADMIN_MAX_CONNECTIONS, DURATION, Form, Group, LOG_FORMAT, LOG_LEVEL, NETWORKS,
    NUMBER, REDIS, REDIS_URL, Schema, Setting,
};

use super::metrics;

/// Every setting of `ftp-relay`.
pub static SCHEMA: Schema = Schema {
    program: "ftp-relay",
    about: "carries the connections of FTP clients to the nodes of a distributed FTP cluster",
    version: env!("CARGO_PKG_VERSION"),
    prefix: "FTP_RELAY_",
    groups: &[&ESSENTIAL, &NETWORK, &REGISTRY, &REDIS, &limits::LIMITS, &limits::TIMEOUTS, &LOGGING],
    subcommands: &[manual::HEALTH],
    metrics: metrics::METRICS,
    manual: manual::MANUAL,
    example_file: manual::EXAMPLE_FILE,
};

const PORT: Form = Form::new("PORT", "port from 1 to 65535");

static ESSENTIAL: Group = Group {
    name: "Essential",
    about: "The settings to begin with. A relay needs `redis_url` or `redis_sentinels`; the passive range is \
            that of the nodes.",
    settings: &[
        Setting::one(
            "redis_url",
            REDIS_URL,
            "",
            "The Redis that holds the registry, the same as on the nodes. The relay reads there which node \
             owns which passive ports. It keeps the last answer while Redis is away.",
        ),
        Setting::one(
            "passive_port_min",
            PORT,
            "50000",
            "The first port of the passive range of the cluster, the same as on the nodes.",
        ),
        Setting::one(
            "passive_port_max",
            PORT,
            "50099",
            "The last port of the passive range of the cluster, the same as on the nodes.",
        ),
        Setting::one(
            "control_port",
            Form::new(PORT.value_name, "port from 1 to 65535 (21)"),
            "",
            "The port for control connections. The relay sends each of them to the ready node with the \
             fewest sessions, and to another one if the node does not greet. The nodes need the relay's \
             address in `trusted_balancers`. If not set, another balancer carries the control connections.",
        ),
        Setting::one(
            "implicit_tls_port",
            Form::new(PORT.value_name, "port from 1 to 65535 (990)"),
            "",
            "The port for control connections with implicit FTPS. If not set, the relay does not carry them.",
        ),
        Setting::one(
            "nft_map",
            Form::new("FAMILY TABLE MAP", "family, table and map of nftables (inet ftp_data_path owners)"),
            "",
            "A named map of nftables that the relay keeps equal to the owners of the passive ports, for the \
             kernel's data path. Its type is `inet_service : ipv4_addr` (or `ipv6_addr`), its flag \
             `interval`. The relay runs `nft` and needs CAP_NET_ADMIN. If not set, the relay does not \
             use nftables.",
        ),
    ],
};

static NETWORK: Group = Group {
    name: "Network",
    about: "Addresses, balancers in front of the relay, and the admin port with /metrics, /healthz and \
            /readyz.",
    settings: &[
        Setting::many(
            "listen",
            Form::new("ADDRESS", "IP addresses (0.0.0.0, ::)"),
            "0.0.0.0,::",
            "The addresses of the passive ports and the control ports. The default is every address of the \
             host. An address family that the host does not have is an error only if this setting names \
             it.",
        ),
        Setting::many(
            "trusted_balancers",
            NETWORKS,
            "",
            "Networks of balancers in front of the relay. A connection from them must begin with a PROXY \
             header, which names the client address. From other addresses nothing is expected.",
        ),
        Setting::one(
            "source_address",
            Form::new("ADDRESS", "IP address (10.0.0.2)"),
            "",
            "The address from which the relay connects to the nodes. If not set, the kernel chooses it. \
             Nodes that are reached over the other address family are not affected.",
        ),
        Setting::one(
            "admin_listen",
            Form::new("IP:PORT", "IP:PORT (127.0.0.1:9122)"),
            "127.0.0.1:9122",
            "The address of /metrics, /healthz and /readyz. They have no authentication, so the default is \
             loopback; Prometheus on another host needs an address of the internal network. Empty: not \
             served.",
        ),
        ADMIN_MAX_CONNECTIONS,
        ADMIN_HEADER_TIMEOUT,
    ],
};

static REGISTRY: Group = Group {
    name: "Registry",
    about: "The registry in Redis: the map of the passive ports and the keys of relayed connections.",
    settings: &[
        Setting::one(
            "map_refresh",
            DURATION,
            "5s",
            "The interval at which the relay reads the map of the passive ports and the sessions of each \
             node. A connection for a port whose owner is not in the map makes the relay read it at once.",
        ),
        Setting::one(
            "relay_key_rotation",
            DURATION,
            "1d",
            "The age at which the key that authenticates relayed connections is replaced. Nodes and relays \
             share the keys through Redis and accept the last three. The same on all of them.",
        ),
    ],
};

static LOGGING: Group = Group {
    name: "Logging",
    about: "The log goes to standard error; docs/logs.md explains its fields.",
    settings: &[
        Setting::one(
            "log_level",
            LOG_LEVEL,
            "info",
            "The least severe level that is logged, or a filter of env_logger (`info,ftpd::relay=debug`). At \
             debug the log has one line for each relayed connection. SIGHUP applies a change.",
        ),
        LOG_FORMAT,
        Setting::one(
            "failure_log_limit",
            NUMBER,
            "60",
            "Log lines a minute for each kind of connection that fails, from one network; for all networks \
             together it is ten times as high. One more line sums up what was left out. 0: no limit.",
        ),
    ],
};
