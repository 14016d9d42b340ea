//! Settings of addresses, ports, balancers and the admin port.

use common::settings::{ADMIN_HEADER_TIMEOUT, ADMIN_MAX_CONNECTIONS, Form, Group, NETWORKS, Setting, TEXT};

use super::PORT;

pub(super) static NETWORK: Group = Group {
    name: "Network",
    about: "Addresses, balancers, active mode and the admin port with /metrics, /healthz and /readyz.",
    settings: &[
        Setting::many(
            "listen",
            Form::new("ADDRESS", "IP addresses (0.0.0.0, ::)"),
            "0.0.0.0,::",
            "The addresses of the control port and the passive ports. The default is every address of the \
             host. An address family that the host does not have is an error only if this setting names \
             it.",
        ),
        Setting::one(
            "implicit_tls_port",
            Form::new(PORT.value_name, "port from 1 to 65535 (990)"),
            "",
            "A second control port for implicit FTPS, where TLS begins with the first byte; 990 by \
             convention. If not set, the node offers explicit FTPS (AUTH TLS) alone.",
        ),
        Setting::many(
            "trusted_balancers",
            NETWORKS,
            "",
            "Networks of the balancers. A connection from them must begin with a PROXY header, which names \
             the client address. A PROXY header from any other address is refused.",
        ),
        Setting::switch(
            "behind_proxy",
            "false",
            "Expect a balancer. If `trusted_balancers` is empty, every private and loopback address counts \
             as a balancer. Prefer `trusted_balancers`; this switch exists for settings of the reference \
             system.",
        )
        .alias("FtpBehindProxy"),
        Setting::switch(
            "nginx_data_path",
            "false",
            "nginx carries the data connections. nginx turns the reset of a client's data connection into an \
             orderly end, so a plain upload that was cut short may get 226. Uploads over FTPS and uploads \
             after ALLO are safe. The node warns about this at its start; the switch changes nothing else. \
             Prefer ftp-relay or the kernel for data connections.",
        ),
        Setting::many(
            "internal_networks",
            NETWORKS,
            "",
            "Networks of clients that reach the cluster without NAT. PASV announces them the address on \
             which they reached the balancer, instead of `external_address`.",
        ),
        Setting::switch(
            "active_mode",
            "true",
            "Offer active mode (PORT and EPRT), to the client's own address only. Switch it off where the \
             nodes may not open connections to clients.",
        ),
        Setting::many(
            "host_names",
            Form::new("NAMES", "host names (ftp.example.com)"),
            "",
            "The names that the HOST command (RFC 7151) accepts. If not set, it accepts every name.",
        ),
        Setting::one(
            "greeting",
            TEXT,
            "Distributed FTP ready",
            "The text of the 220 reply to a new connection.",
        ),
        Setting::one(
            "admin_listen",
            Form::new("IP:PORT", "IP:PORT (127.0.0.1:9121)"),
            "127.0.0.1:9121",
            "The address of /metrics, /healthz and /readyz. They have no authentication, so the default is \
             loopback; Prometheus on another host needs an address of the internal network. Empty: not \
             served.",
        ),
        ADMIN_MAX_CONNECTIONS,
        ADMIN_HEADER_TIMEOUT,
    ],
};
