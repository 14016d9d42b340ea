//! Texts of the manual pages ftp-relay(8) and ftp-relay.toml(5), and of the help.

use common::{
    health_command,
    settings::{Manual, Subcommand},
};

pub(super) const MANUAL: Manual = Manual {
    synopsis: &[
        ("ftp-relay --redis-url HOST:PORT [OPTIONS]", "data connections, on the balancer's host"),
        ("ftp-relay --config FILE", "the same, with settings from a file"),
        ("ftp-relay --check [--deep] [OPTIONS]", "verify the settings and what they name"),
        ("ftp-relay [OPTIONS] health", "ask the running relay whether it is ready"),
    ],
    description: &[
        "`ftp-relay` listens on the passive range of a cluster of `ftpd`(8) nodes and carries each data \
         connection to the node that owns its port. It reads the owners from the registry in Redis, so it \
         needs no reload when nodes join, leave or drain. It has no files and no users.",
        "It keeps the meaning of the end of a connection: an orderly end arrives as an orderly end, a reset \
         as a reset, and if the relay itself is killed, both sides see a reset. So a node never takes an \
         upload that was cut short for a complete one.",
        "With `control_port` and `implicit_tls_port` it also carries control connections, to the ready node \
         with the fewest sessions. A node that does not greet within `greeting_timeout` gets no client.",
        "Several relays may run side by side. A relay starts without Redis, and listens as soon as it has \
         read the map of the passive ports once; from then on it keeps the last map while Redis is away.",
        "It runs in the foreground, logs to standard error and needs no root. Ports below 1024 need \
         CAP_NET_BIND_SERVICE, which it gives up after it has bound them; `nft_map` needs CAP_NET_ADMIN, \
         which only the thread that runs `nft`(8) keeps.",
    ],
    examples: &[
        ("Data connections; nginx carries the control connections:", {
            "ftp-relay --redis-url 10.0.0.5:6379 --redis-password-file /run/secrets/redis-password"
        }),
        ("Control connections too:", {
            "ftp-relay --redis-url 10.0.0.5:6379 --control-port 21 --implicit-tls-port 990"
        }),
        (
            "Verify a configuration, and that Redis answers:",
            "ftp-relay --config ftp-relay.toml --check --deep",
        ),
    ],
    files: &[(
        "/etc/distributed-ftp/ftp-relay.toml",
        "The settings, where the NixOS module puts them. Another file needs only `--config`. There is no \
         default.",
    )],
    environment: &[
        ("FTP_RELAY_CONFIG", "Path of the file with settings, if `--config` is not given."),
        (
            "FTP_RELAY_KEY",
            "Any setting: the prefix and its key in capitals, such as `FTP_RELAY_LOG_LEVEL`. An unknown key \
             is an error.",
        ),
        ("PATH", "With `nft_map`: where `nft` is."),
        (
            "NOTIFY_SOCKET, WATCHDOG_USEC",
            "Set by systemd for services with `Type=notify` and `WatchdogSec=`: ftp-relay reports that it \
             has started, that it stops, and that it is alive.",
        ),
    ],
    signals: &[
        (
            "SIGTERM, SIGINT",
            "Drain: new connections are refused, relayed connections go on for at most `drain_timeout`, then \
             ftp-relay exits with 0. A second one resets the remaining connections at once.",
        ),
        (
            "SIGHUP",
            "Read the configuration file again. A change of `log_level` or `log_format` applies at once; the \
             log names every other changed setting, which needs a restart.",
        ),
    ],
    exit_status: &[
        ("0", "ftp-relay ended as asked: by a signal, or after `--check` or `--print-…`."),
        (
            "1",
            "ftp-relay could not start; the last line of the log says why. With `--check --deep`: something \
             that the settings name cannot be used.",
        ),
        ("2", "The command line is wrong."),
        (
            "78",
            "A setting is wrong or missing (EX_CONFIG). A restart does not help: \
             `RestartPreventExitStatus=78` in systemd.",
        ),
    ],
    see_also: &["ftpd(8)", "nft(8)", "systemd.service(5)"],
};

pub(super) const HEALTH: Subcommand = health_command::subcommand(
    &[("ftp-relay [--config FILE] [--admin-listen IP:PORT] health", "")],
    &[
        ("In a container, whose variables are those of the daemon:", "podman exec relay ftp-relay health"),
        ("Beside a service:", "ftp-relay --config /etc/distributed-ftp/ftp-relay.toml health"),
    ],
    &["ftp-relay(8)", "ftp-relay.toml(5)"],
);

pub(super) const EXAMPLE_FILE: &str = "\
redis_url = \"10.0.0.5:6379\"
redis_password_file = \"/run/secrets/redis-password\"
passive_port_min = 50000
passive_port_max = 50099   # the same on every node
source_address = \"10.0.0.2\"
admin_listen = \"10.0.0.2:9122\"
";
