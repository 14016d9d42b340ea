//! Texts of the manual pages ftpd(8) and ftpd.toml(5), and of the help.

use common::{
    health_command,
    settings::{Manual, Subcommand},
};

pub(super) const MANUAL: Manual = Manual {
    synopsis: &[
        ("ftpd --config FILE", "one node of a cluster"),
        ("ftpd --standalone [OPTIONS]", "one server, without authd and Redis"),
        ("ftpd --check [--deep] [OPTIONS]", "verify the settings and what they name"),
        ("ftpd [OPTIONS] health", "ask the running node whether it is ready"),
    ],
    description: &[
        "`ftpd` serves files over FTP and FTPS. Several nodes form a cluster that clients see as one \
         server: a balancer in front passes connections on, all nodes mount the same storage, `authd`(8) \
         verifies logins, and Redis holds the registry of sessions, nodes and leases.",
        "With `--standalone` it is one server by itself, with users from a file.",
        "It runs in the foreground, logs to standard error and needs no root. A control port below 1024 \
         needs CAP_NET_BIND_SERVICE, which it gives up after it has bound the port. Linux 5.6 or later is \
         required.",
    ],
    examples: &[
        ("A standalone server, with a user in a file:", {
            "echo \"ann:$(authd hash-password)\" > users\n\
             ftpd --standalone --root ./files --port 2121 --user-file users"
        }),
        ("A node of a cluster:", "ftpd --config /etc/distributed-ftp/ftpd.toml"),
        (
            "Verify a configuration, with its storage, certificates, Redis and authd:",
            "ftpd --config ftpd.toml --check --deep",
        ),
        ("One run with a more detailed log:", "FTPD_LOG_LEVEL=debug ftpd --config ftpd.toml"),
    ],
    files: &[
        (
            "/etc/distributed-ftp/ftpd.toml",
            "The settings, where the NixOS module puts them. Another file needs only \
          `--config`. There is no default.",
        ),
        ("/srv/ftp", "The storage, if `root` is not set."),
    ],
    environment: &[
        ("FTPD_CONFIG", "Path of the file with settings, if `--config` is not given."),
        (
            "FTPD_KEY",
            "Any setting: the prefix and its key in capitals, such as `FTPD_LOG_LEVEL`. An unknown key is \
             an error.",
        ),
        (
            "port, FtpPasvMinPort, FtpPasvMaxPort, FtpExternalIP, FtpBehindProxy, RedisConnectionString, \
             authservice",
            "Names of some settings in the system that this one replaces. The variables above \
             take precedence.",
        ),
        (
            "NOTIFY_SOCKET, WATCHDOG_USEC",
            "Set by systemd for services with `Type=notify` and `WatchdogSec=`: ftpd reports that it is \
             ready, that it stops, and that it is alive.",
        ),
    ],
    signals: &[
        (
            "SIGTERM, SIGINT",
            "Drain: new connections are refused, running transfers go on for at most `drain_timeout`, then \
             ftpd exits with 0. A second one ends the remaining sessions at once.",
        ),
        (
            "SIGHUP",
            "Read certificates and revocation lists again, open the transfer log again, and read the \
             configuration file again. A change of `log_level` or `log_format` applies at once; the log \
             names every other changed setting, which needs a restart.",
        ),
    ],
    exit_status: &[
        (
            "0",
            "ftpd ended as asked: by a signal, by an administrator's drain, or after `--check` or \
             `--print-…`.",
        ),
        (
            "1",
            "ftpd could not start or could not go on; the last line of the log says why. With `--check \
             --deep`: something that the settings name cannot be used.",
        ),
        ("2", "The command line is wrong."),
        (
            "78",
            "A setting is wrong or missing (EX_CONFIG). A restart does not help: \
             `RestartPreventExitStatus=78` in systemd.",
        ),
    ],
    see_also: &["authd(8)", "authd-hash-password(1)", "systemd.service(5)"],
};

pub(super) const HEALTH: Subcommand = health_command::subcommand(
    &[("ftpd [--config FILE] [--admin-listen IP:PORT] health", "")],
    &[
        ("In a container, whose variables are those of the daemon:", "podman exec ftp1 ftpd health"),
        ("Beside a service:", "ftpd --config /etc/distributed-ftp/ftpd.toml health"),
    ],
    &["ftpd(8)", "ftpd.toml(5)"],
);

pub(super) const EXAMPLE_FILE: &str = "\
node_name = \"ftp2\"
passive_port_min = 50000
passive_port_max = 50099
external_address = \"203.0.113.5\"
trusted_balancers = [\"10.0.0.2/32\"]
root = \"/srv/ftp\"
redis_url = \"10.0.0.5:6379\"
redis_password_file = \"/run/secrets/redis-password\"
authd_urls = [\"http://10.0.0.5:5160\"]
authd_token_file = \"/run/secrets/node-token\"
tls_certificates = [\"/etc/ssl/ftp.pem\"]
tls_keys = [\"/etc/ssl/ftp.key\"]
idle_timeout = \"10m\"
";
