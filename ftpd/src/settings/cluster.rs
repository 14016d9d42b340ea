//! Settings of the registry, authd and readiness.

use common::settings::{DURATION, FILE, Form, Group, NUMBER, REDIS_REPLICAS, Setting, TEXT};

use super::IP_ADDRESS;

pub(super) static CLUSTER: Group = Group {
    name: "Cluster",
    about: "The registry in Redis, the passive ports of each node, authd, and the readiness that a balancer \
            checks.",
    settings: &[
        Setting::one(
            "authd_token_file",
            FILE,
            "",
            "A file that holds the bearer token of the nodes for authd.",
        ),
        Setting::one(
            "authd_timeout",
            DURATION,
            "5s",
            "The time in which one of the authd instances must answer a login. After it the client gets 421.",
        ),
        Setting::one(
            "reauthorize_interval",
            DURATION,
            "5m",
            "The interval at which the node asks authd which sessions may stay. It ends the sessions of \
             users who were removed or disabled, got a new password, or may not log in from their address \
             or at this time. The node also asks at once when accounts change; the interval covers allowed \
             hours, and changes that it missed while Redis was away.",
        ),
        Setting::one(
            "registry_away",
            Form::new("admit|refuse", "admit or refuse"),
            "admit",
            "New logins and uploads while Redis is away. admit: they go on, and limits and leases hold on \
             this node only. refuse: logins get 421, uploads 450; choose it where limits for the whole \
             cluster matter more than availability. With refuse, a cluster that starts with an empty Redis \
             leases passive ports after `node_lease` and `data_connect_timeout` together.",
        ),
        REDIS_REPLICAS,
        Setting::one(
            "node_lease",
            DURATION,
            "15s",
            "The time without a sign of life after which the registry drops a node and its sessions, and \
             frees its name. A node that finds its name held by another process waits this long, and ends \
             if that process renews its lease. A shorter lease finds dead nodes sooner; a longer one \
             tolerates longer outages of Redis.",
        ),
        Setting::one(
            "passive_block_ports",
            NUMBER,
            "5",
            "The ports of a block, the same on all nodes. The nodes lease blocks of the passive range in the \
             registry, each its fair share. A cluster can have as many nodes as the range has blocks; with \
             larger blocks, fewer blocks change hands when a node joins or leaves.",
        ),
        Setting::many(
            "cluster_nodes",
            Form::new("NAMES", "names of nodes (ftp1,ftp2,ftp3)"),
            "",
            "The names of all nodes, in the same order on every node. The position of `node_name` in the \
             list selects this node's fixed slice of the passive range, in place of leased blocks. Only \
             nginx as data path and a kernel data path without ftp-relay need fixed slices.",
        ),
        Setting::one(
            "cluster_size",
            NUMBER,
            "",
            "The number of nodes, in place of `cluster_nodes` where names end in numbers from 0 on (a \
             StatefulSet's ftp-0, ftp-1, ftp-2). The number in `node_name` selects this node's fixed slice.",
        ),
        Setting::one(
            "passive_slice",
            Form::new("FROM-TO", "range of ports (50000-50049)"),
            "",
            "This node's fixed slice of the passive range, in place of leased blocks. No other node may have \
             any of these ports.",
        ),
        Setting::one(
            "node_address",
            IP_ADDRESS,
            "",
            "The address at which the other nodes and ftp-relay reach this node. If not set: the address in \
             `listen`, if it is one specific address; otherwise the address from which this host reaches \
             Redis; if that is a loopback address, the one with which it reaches other networks. Set it \
             where the nodes see each other at another address, such as behind NAT.",
        ),
        Setting::one(
            "relay_key_rotation",
            DURATION,
            "1d",
            "The age at which the nodes replace the key that authenticates relayed connections. They share \
             the key through Redis and accept the three newest keys.",
        ),
        Setting::one(
            "boot_id",
            TEXT,
            "",
            "The host's boot ID (systemd's `%b`), for services that cannot read \
             /proc/sys/kernel/random/boot_id. With it a node that crashed takes its name back at once; \
             without it after `node_lease`.",
        ),
        Setting::many(
            "readiness_requires",
            Form::new("NAMES", "names of storage, registry, authd, credentials"),
            "storage,authd,credentials",
            "The dependencies without which /readyz answers 503. `credentials` fails if Redis or authd \
             refuses this node's password or token, which waiting does not repair. With `registry_away = \
             \"refuse\"` the default also includes `registry`.",
        ),
        Setting::one(
            "readiness_interval",
            DURATION,
            "5s",
            "The interval at which the node tests its storage and authd.",
        ),
        Setting::one(
            "readiness_timeout",
            DURATION,
            "5s",
            "The time limit of such a test. After it the dependency counts as failed.",
        ),
    ],
};
