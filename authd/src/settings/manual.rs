//! Texts of the manual pages authd(8), authd.toml(5) and authd-hash-password(1), and of the help.

use common::{
    health_command,
    settings::{Manual, Subcommand},
};

pub(super) const MANUAL: Manual = Manual {
    synopsis: &[
        ("authd --config FILE", "the service"),
        ("authd --check [--deep] [OPTIONS]", "verify the settings and what they name"),
        ("authd hash-password", "make a hash for a users file"),
        ("authd hash-token", "make a line for administrators_file"),
        ("authd [OPTIONS] health", "ask the running authd whether it is ready"),
    ],
    description: &[
        "`authd` decides the logins of a distributed FTP cluster. The nodes, `ftpd`(8), send it names and \
         passwords over HTTP; it answers with the account: home, permissions, limits. Users are declared \
         in a file, or kept in Redis and changed through the HTTP API, which also shows and ends sessions \
         and drains nodes. `/openapi.json` describes the API.",
        "Several instances may run for one cluster: they share all state through Redis. While Redis is \
         away, declared users can still log in.",
        "It runs in the foreground, logs to standard error and needs no root. It serves HTTP without TLS: \
         let only the nodes and administrators reach it.",
    ],
    examples: &[
        ("The service:", "authd --config /etc/distributed-ftp/authd.toml"),
        (
            "A trial, whose users demo, admin and test log in with any password:",
            "authd --demo --redis-url 127.0.0.1:6379",
        ),
        (
            "Verify a configuration, with its users file and Redis:",
            "authd --config authd.toml --check --deep",
        ),
        ("The hash of a password, for a users file:", "authd hash-password"),
        (
            "All sessions, through the API:",
            "curl -H \"Authorization: Bearer $(cat admin-token)\" http://127.0.0.1:5160/v1/sessions",
        ),
    ],
    files: &[
        (
            "/etc/distributed-ftp/authd.toml",
            "The settings, where the NixOS module puts them. Another file needs only \
          `--config`. There is no default.",
        ),
        (
            "users_file",
            "The declared users and groups, in TOML or JSON, and the files with hashes that it names.",
        ),
    ],
    environment: &[
        ("AUTHD_CONFIG", "Path of the file with settings, if `--config` is not given."),
        (
            "AUTHD_KEY",
            "Any setting: the prefix and its key in capitals, such as `AUTHD_LOG_LEVEL`. An unknown key is \
             an error.",
        ),
        (
            "RedisConnectionString",
            "`redis_url`, as in the system that this one replaces. It is weaker than `AUTHD_REDIS_URL`.",
        ),
        (
            "NOTIFY_SOCKET, WATCHDOG_USEC",
            "Set by systemd for services with `Type=notify` and `WatchdogSec=`: authd reports that it is \
             ready, that it stops, and that it is alive.",
        ),
    ],
    signals: &[
        (
            "SIGTERM, SIGINT",
            "Accept no more requests, finish the running ones for at most `stop_timeout`, and exit with 0.",
        ),
        (
            "SIGHUP",
            "Read the users file, the administrators' file and the configuration file again. A change of \
             `log_level` or `log_format` applies at once; the log names every other changed setting, which \
             needs a restart.",
        ),
    ],
    exit_status: &[
        ("0", "authd ended as asked: by a signal, or after `--check`, `--print-…` or `hash-password`."),
        (
            "1",
            "authd could not start; the last line of standard error says why. With `--check --deep`: Redis \
             cannot be used. With `hash-password`: the password is empty, too short, or has control \
             characters.",
        ),
        ("2", "The command line is wrong."),
        (
            "78",
            "A setting or the users file is wrong or missing (EX_CONFIG). A restart does not help: \
             `RestartPreventExitStatus=78` in systemd.",
        ),
    ],
    see_also: &["ftpd(8)", "authd-hash-password(1)", "systemd.service(5)"],
};

pub(super) const HASH_PASSWORD: Manual = Manual {
    synopsis: &[("authd hash-password", ""), ("authd [--argon2-memory-kib KIB] hash-password", "")],
    description: &[
        "`authd hash-password` reads a password and prints its argon2id hash in PHC format, for \
         `password_hash` in a users file of `authd`(8), or for a line `NAME:HASH` in a `user_file` of \
         `ftpd`(8).",
        "On a terminal it asks for the password twice, and does not show it. Otherwise it reads one line \
         of standard input.",
        "The settings `min_password_length`, `argon2_memory_kib` and `argon2_iterations` of \
         `authd.toml`(5) apply. Flags stand before the subcommand.",
    ],
    examples: &[
        ("Ask for a password:", "authd hash-password"),
        ("A random password, and its hash in a file:", {
            "openssl rand -base64 18 | tee ann.password | authd hash-password > ann.hash"
        }),
    ],
    files: &[],
    environment: &[("AUTHD_KEY", "The settings above: `AUTHD_MIN_PASSWORD_LENGTH` and so on.")],
    signals: &[],
    exit_status: &[
        ("0", "The hash was printed."),
        ("1", "The password is empty, too short, or has control characters."),
        ("78", "A setting is wrong."),
    ],
    see_also: &["authd(8)", "authd.toml(5)", "ftpd(8)"],
};

pub(super) const HASH_TOKEN: Manual = Manual {
    synopsis: &[("authd hash-token", "")],
    description: &[
        "`authd hash-token` reads an administrator's token and prints the line `token_sha256 = …` for \
         `administrators_file` of `authd`(8). The token should be random; at least 24 characters.",
        "On a terminal it asks for the token twice, and does not show it. Otherwise it reads one line of \
         standard input.",
    ],
    examples: &[("A random token, and its line:", {
        "openssl rand -base64 24 | tee ann.token | authd hash-token"
    })],
    files: &[],
    environment: &[],
    signals: &[],
    exit_status: &[("0", "The line was printed."), ("1", "There was no token.")],
    see_also: &["authd(8)", "authd.toml(5)"],
};

pub(super) const HEALTH: Subcommand = health_command::subcommand(
    &[("authd [--config FILE] [--listen IP:PORT] health", "")],
    &[
        ("In a container, whose variables are those of the daemon:", "podman exec authd authd health"),
        ("Beside a service:", "authd --config /etc/distributed-ftp/authd.toml health"),
    ],
    &["authd(8)", "authd.toml(5)"],
);

pub(super) const EXAMPLE_FILE: &str = "\
listen = \"10.0.0.5:5160\"
users_file = \"/etc/distributed-ftp/users.toml\"
node_token_file = \"/run/secrets/node-token\"
admin_token_file = \"/run/secrets/admin-token\"
redis_url = \"10.0.0.5:6379\"
redis_password_file = \"/run/secrets/redis-password\"
trusted_networks = [\"10.0.0.0/24\"]
";
