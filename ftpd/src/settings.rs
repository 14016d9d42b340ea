//! The table of settings: every key of `ftpd` with its form, default and meaning.

use common::settings::{DURATION, DURATION_OR_OFF, Schema, Setting, Shape};

const fn alias(alias: &'static str, setting: Setting) -> Setting {
    Setting { alias: Some(alias), ..setting }
}

/// Every setting of `ftpd`.
pub static SCHEMA: Schema = Schema {
    program: "ftpd",
    about: "The FTP node of Distributed FTP",
    version: env!("CARGO_PKG_VERSION"),
    prefix: "FTPD_",
    settings: &[
        // What the node is
        Setting::one(
            "node_name",
            "name of A-Z, a-z, 0-9, dot, hyphen and underscore (ftp1)",
            "",
            "The node's name in the cluster; the host's name if not set.",
        ),
        Setting::one(
            "boot_id",
            "text",
            "",
            "The host's boot ID, where /proc/sys/kernel/random/boot_id is hidden from the process (systemd's `%b`). By it a node that crashed takes its name back at once; otherwise after `node_lease`.",
        ),
        Setting::many(
            "cluster_nodes",
            "names of nodes (ftp1,ftp2,ftp3)",
            "",
            "All nodes in order; this node's place decides its slice of the passive ports. Without it the whole range is this node's.",
        ),
        Setting::switch(
            "standalone",
            "false",
            "Serve by itself: users from `user` and `user_file`, no authd, no Redis unless `redis_url` is set, and a missing `root` is made.",
        ),
        Setting {
            shape: Shape::Repeated,
            ..Setting::one(
                "user",
                "NAME:PASSWORD",
                "",
                "A user of a standalone node, at home in `root`. Every user of the host sees a flag's password in `ps`: `user_file` or the variable keep it. Without any user: demo, admin and test with any password, on loopback only.",
            )
        },
        Setting::one(
            "user_file",
            "path of a file",
            "",
            "Users of a standalone node, NAME:HASH a line, with the hash that `authd hash-password` prints; lines that are empty or begin with # are passed over. Only ftpd's user should be able to read it.",
        ),
        // Where it listens
        Setting::many(
            "listen",
            "IP addresses (0.0.0.0, ::)",
            "0.0.0.0,::",
            "Addresses for the control and the passive ports.",
        ),
        alias(
            "port",
            Setting::one("port", "port from 1 to 65535 (0 takes a free one)", "21", "The control port."),
        ),
        alias(
            "FtpPasvMinPort",
            Setting::one(
                "passive_port_min",
                "port from 1 to 65535",
                "50000",
                "First port of the cluster's passive port range.",
            ),
        ),
        alias(
            "FtpPasvMaxPort",
            Setting::one(
                "passive_port_max",
                "port from 1 to 65535",
                "50099",
                "Last port of the cluster's passive port range.",
            ),
        ),
        alias(
            "FtpExternalIP",
            Setting::one(
                "external_address",
                "IP address (203.0.113.10)",
                "",
                "The address that PASV announces; if not set, the one on which the client reached the balancer or the node.",
            ),
        ),
        Setting::many(
            "internal_networks",
            "CIDR list (10.0.0.0/24, 2001:db8::/64)",
            "",
            "Clients from here are told the address on which they reached the balancer, not `external_address`.",
        ),
        alias(
            "FtpBehindProxy",
            Setting::switch(
                "behind_proxy",
                "false",
                "A balancer is in front; if `trusted_balancers` is empty, every private and loopback address counts as one.",
            ),
        ),
        Setting::many(
            "trusted_balancers",
            "CIDR list (10.0.0.0/24, 2001:db8::/64)",
            "",
            "Addresses that must send a PROXY header, and are believed. A header from any other address is refused.",
        ),
        Setting::switch("active_mode", "true", "Offer PORT and EPRT, to the client's own address only."),
        Setting::many(
            "host_names",
            "host names (ftp.example.com)",
            "",
            "Names that HOST accepts; without any, every name.",
        ),
        Setting::one(
            "admin_listen",
            "IP:PORT (127.0.0.1:9121)",
            "127.0.0.1:9121",
            "Where /metrics, /healthz and /readyz are served; set to nothing to switch them off.",
        ),
        Setting::one(
            "admin_max_connections",
            "number",
            "16",
            "Connections to admin_listen at once. Beyond three quarters of them, one more closes the oldest silent one.",
        ),
        Setting::one(
            "admin_header_timeout",
            DURATION,
            "5s",
            "How long a connection to admin_listen may be without a complete head of a request.",
        ),
        Setting::many(
            "readiness_requires",
            "names of storage, registry, authd, credentials",
            "storage,authd,credentials",
            "What makes /readyz answer 503 while it fails; credentials: Redis or authd refuses this node's password or token, which does not get better by waiting. With `registry_away = \"refuse\"` registry is in the default too.",
        ),
        Setting::one(
            "readiness_interval",
            DURATION,
            "5s",
            "How often the storage and authd are asked whether they answer.",
        ),
        Setting::one(
            "readiness_timeout",
            DURATION,
            "5s",
            "How long they may take; then they count as failed.",
        ),
        Setting::one("greeting", "text", "Distributed FTP ready", "What the 220 reply says."),
        Setting::one(
            "ascii_conversion",
            "explicit, on or off",
            "explicit",
            "Whether TYPE A converts line ends (CRLF on the wire, LF in the file). explicit: once the client has sent TYPE A. on: from the login on, which is RFC 959's default; a client that never sends TYPE damages its binary files. off: never.",
        ),
        // TLS
        Setting::many(
            "tls_certificates",
            "PEM files",
            "",
            "Certificate chains; the one for the name that a client asks for is used. Without any, there is no TLS.",
        ),
        Setting::many(
            "tls_keys",
            "PEM files",
            "",
            "The keys of `tls_certificates`, in the same order; without any, each key is in its certificate's file.",
        ),
        Setting::one(
            "tls",
            "off, optional or required",
            "optional",
            "Encryption of control connections, where there is a certificate; required: nobody logs in without.",
        ),
        Setting::one(
            "tls_data",
            "off, optional or required",
            "optional",
            "Encryption of data connections (PROT P); required: no transfer without.",
        ),
        Setting::one(
            "tls_data_reuse",
            "required, preferred or off",
            "preferred",
            "Whether a data connection must resume its control connection's TLS session, which proves whose it is; required: others get 522. preferred: with TLS 1.2 they get 522 once one of the session has resumed; with TLS 1.3 clients may run out of tickets, and are served.",
        ),
        Setting::switch(
            "tls_close_notify",
            "true",
            "An encrypted upload that ends without close_notify was cut off, and gets 426, unless ALLO announced exactly what came. Off for clients that never send it, as .NET's FtpWebRequest; better for their users alone (`tls.close_notify` in authd).",
        ),
        Setting::one(
            "kernel_tls",
            "auto or off",
            "auto",
            "Whether the kernel encrypts downloads (kTLS), where its module `tls` is loaded.",
        ),
        Setting::one("tls_minimum", "1.2 or 1.3", "1.2", "The oldest version of TLS that is spoken."),
        Setting::one(
            "tls_tickets",
            "number",
            "8",
            "Session tickets a client of TLS 1.3 gets on its control connection. It uses one for each data connection, and gets two with that; after an upload only if it reads until the node closes. The control connection's are all that one has which only uploads and does not.",
        ),
        Setting::one(
            "tls_ticket_rotation",
            DURATION,
            "12h",
            "How often the key that seals tickets is replaced; tickets are good for twice as long.",
        ),
        Setting::one(
            "tls_resumption_max_age",
            DURATION,
            "24h",
            "How long after a full TLS handshake new control connections may resume it, by whatever tickets came since. Data connections of a session resume for as long as it lasts.",
        ),
        Setting::one("tls_handshake_timeout", DURATION, "10s", "How long a TLS handshake may take."),
        Setting::one(
            "tls_client_ca",
            "PEM file",
            "",
            "Authorities whose client certificates are verified, and told to authd.",
        ),
        Setting::many(
            "tls_client_crls",
            "PEM files",
            "",
            "Certificate revocation lists for tls_client_ca, read again when they change and on SIGHUP. With any, every authority in a client's chain needs one that has not expired: without, its certificates are refused.",
        ),
        Setting::one(
            "implicit_tls_port",
            "port from 1 to 65535 (990)",
            "",
            "A second control port where TLS begins at once (990); not listened on if not set.",
        ),
        // Files
        Setting::one("root", "directory", "/srv/ftp", "The shared storage; homes are inside it."),
        Setting::switch("create_homes", "false", "Make a user's home at the first login if it is missing."),
        Setting::one("file_mode", "octal mode from 0 to 0777 (0640)", "0640", "Permissions of new files."),
        Setting::one(
            "directory_mode",
            "octal mode from 0 to 0777 (0640)",
            "0750",
            "Permissions of new directories.",
        ),
        Setting::switch(
            "sync_uploads",
            "true",
            "Answer 226 only after fsync. Off, a crash of the storage can lose what was confirmed.",
        ),
        Setting::one(
            "storage_locks",
            "auto, cluster or off",
            "auto",
            "Locks on files that are written, which keep a second writer out also while Redis is away. auto: taken, and the mount tells whether they hold on all nodes (local file systems, NFS without nolock and local_lock, CephFS, GlusterFS and others); cluster: taken, and they hold on all nodes although the mount does not tell; off: not taken. Where they do not hold on all nodes an upload depends on Redis: see docs/one-writer.md.",
        ),
        Setting::one(
            "settle_time",
            DURATION,
            "50ms",
            "How long a complete atomic upload waits for the news that its client has died, before it gets its name.",
        ),
        Setting::switch(
            "resolve_links",
            "false",
            "Listings show symbolic links as the files and directories they lead to. Danger: a client that deletes a directory then also deletes what links in it lead to, and a recursive listing does not end at a link to a directory above.",
        ),
        Setting::one("list_depth", "number", "32", "How deep LIST -R goes."),
        Setting::one(
            "max_sorted_entries",
            "number",
            "50000",
            "Entries that a listing sorts if asked to; those beyond come unsorted.",
        ),
        Setting::one(
            "max_listing_memory",
            "number of bytes",
            "67108864",
            "Memory that the sorted listings of all sessions take together. An entry takes 56 bytes and its name until it is sent. Entries for which there is no memory come unsorted. 0: nothing is sorted.",
        ),
        Setting::one("max_stat_entries", "number", "1000", "Entries that STAT with a path shows."),
        Setting::one(
            "quota_rescan",
            DURATION,
            "24h",
            "How often what a home with a quota holds is counted from the disk again; in between, what sessions do is added up.",
        ),
        Setting::one(
            "partial_lifetime",
            DURATION_OR_OFF,
            "7d",
            "How long the hidden file of a broken atomic upload stays after its last change, unless it is resumed. Then the node removes it.",
        ),
        // Parts it talks to
        alias(
            "RedisConnectionString",
            Setting::one("redis_url", "HOST:PORT or redis://…", "", "The Redis that holds the registry."),
        ),
        Setting::one("redis_password_file", "path of a file", "", "Holds the password for Redis."),
        Setting::one("redis_prefix", "text", "ftp", "First part of every Redis key; one per cluster."),
        Setting::one("redis_timeout", DURATION, "1s", "How long one request to Redis may take."),
        Setting::one(
            "node_lease",
            DURATION,
            "15s",
            "After this long without a sign of life a node and its sessions are gone from the registry, and its name is free. A node whose name another process holds waits this long, and then ends if that process renews its lease.",
        ),
        Setting::one(
            "registry_away",
            "admit or refuse",
            "admit",
            "While Redis is away, new logins and uploads go on with this node's limits and leases only, or are refused (421, 450).",
        ),
        alias(
            "authservice",
            Setting::many(
                "authd_urls",
                "http://HOST:PORT (http://10.0.0.5:5160)",
                "",
                "The authd instances, asked in turn.",
            ),
        ),
        Setting::one("authd_token_file", "path of a file", "", "Holds the bearer token for nodes."),
        Setting::one(
            "authd_timeout",
            DURATION,
            "5s",
            "How long all of them together may take to answer a login; then it gets 421.",
        ),
        Setting::one(
            "reauthorize_interval",
            DURATION,
            "5m",
            "How often the node asks authd which of its sessions may stay: it ends those of users who are removed, disabled, have another password, or may not be there from their address or at this time. It also asks at once whenever accounts have changed; this is for what changes with the clock, and for changes while Redis is away.",
        ),
        // Limits
        Setting::one(
            "max_sessions",
            "number",
            "10000",
            "Control connections at once; one more gets 421. The last tenth is for networks that logged in within a day. If none is free, a connection that has not logged in for 10 s is ended. The node lowers the number at its start if the limit of open files is too low for it.",
        ),
        Setting::one(
            "max_sessions_per_address",
            "number",
            "200",
            "Sessions of one client address (of one IPv6 /64 network) at once, over all nodes; one more gets 421.",
        ),
        Setting::one(
            "max_transfers",
            "number",
            "1000",
            "Transfers at once, each on a thread of its own; one more waits for its turn, at most `data_connect_timeout`, then it gets 450. Downloads of up to 16 KiB need none. The last quarter is for users without a transfer.",
        ),
        Setting::one(
            "max_transfers_per_user",
            "number",
            "",
            "Transfers of one user at once on this node, unless the account has a limit of its own (`limits.transfers`). If not set, a quarter of `max_transfers`, but at least 10.",
        ),
        Setting::one(
            "minimum_rate",
            "bytes a second",
            "0",
            "A transfer that is slower than this for `minimum_rate_time` gets 426. Time in which it waits for its user's bandwidth does not count. 0: no minimum.",
        ),
        Setting::one("minimum_rate_time", DURATION, "60s", "Over how long `minimum_rate` is measured."),
        Setting::one(
            "max_file_operations",
            "number",
            "128",
            "Short file operations of commands at once; one more waits for its turn. The last quarter is for users without one.",
        ),
        Setting::one(
            "max_file_operations_per_user",
            "number",
            "",
            "Short file operations of one user at once, also those whose session has ended. If not set, a quarter of `max_file_operations`.",
        ),
        Setting::one(
            "max_file_operations_per_filesystem",
            "number",
            "",
            "Short file operations in one file system at once, while sessions use several. If not set, half of `max_file_operations`.",
        ),
        Setting::one(
            "max_login_operations",
            "number",
            "32",
            "Logins that open their home at once, in places of their own; a quarter of them of one user.",
        ),
        Setting::one(
            "file_operation_wait",
            DURATION,
            "2s",
            "A file operation waits for a place as long as others in its share begin or end. If none has for this long, they hang, and it gets 450.",
        ),
        Setting::one(
            "file_operation_alarm",
            DURATION,
            "10s",
            "A file operation that runs for longer is logged. If all `max_file_operations` places are taken and none of the operations has ended for as long, the node is not ready.",
        ),
        Setting::one(
            "max_long_operations",
            "number",
            "64",
            "Long commands (checksums, COMB, RMDA, STAT with a path) at once, each on a thread of its own; one more waits for its turn.",
        ),
        Setting::one("max_long_operations_per_user", "number", "8", "Long commands of one user at once."),
        Setting::one(
            "long_operation_wait",
            DURATION,
            "30s",
            "How long a long command waits for its turn; then 450.",
        ),
        Setting::one(
            "max_checksums_per_user",
            "number",
            "1",
            "Checksums (HASH, XMD5 and so on) of one user that this node computes at once; one more waits for its turn.",
        ),
        Setting::one(
            "max_home_counts",
            "number",
            "32",
            "Counts of homes with a quota at once, each on a thread of its own; one more waits. Four of them read the storage at a time.",
        ),
        Setting::one(
            "home_count_turn",
            DURATION,
            "1s",
            "How long a count of a home may read while another waits; then the one that has read least is next, so that a small home does not wait for a large one, or for storage that hangs.",
        ),
        Setting::one(
            "serving_threads",
            "number",
            "",
            "Threads that serve connections; none of them ever waits for a file. If not set, one for every two processors: more wake each other more often than they help.",
        ),
        Setting::one(
            "max_login_failures",
            "number",
            "3",
            "Failed logins of one connection; then it gets 421.",
        ),
        Setting::one(
            "max_unauthenticated_commands",
            "number",
            "32",
            "Commands before a login; then the connection gets 421.",
        ),
        Setting::one("max_errors", "number", "64", "Rejected commands in a row; then the session gets 421."),
        Setting::one("login_timeout", DURATION, "60s", "From connecting to being logged in."),
        Setting::one(
            "idle_timeout",
            DURATION,
            "5m",
            "Without a command or a transfer; then the session gets 421.",
        ),
        Setting::one(
            "session_max_age",
            DURATION_OR_OFF,
            "0s",
            "How long after its login a session may go on. Then it gets 421, as soon as no transfer runs.",
        ),
        Setting::one("reply_timeout", DURATION, "30s", "How long a client may take to accept a reply."),
        Setting::one("data_connect_timeout", DURATION, "30s", "For the data connection to come; then 425."),
        Setting::one(
            "stall_timeout",
            DURATION,
            "5m",
            "Without a byte in a transfer; then 426. The balancer's limit for silent data connections must be longer: it ends them with an ordinary end of file, which looks like the end of an upload.",
        ),
        Setting::one(
            "checksum_timeout",
            DURATION,
            "1h",
            "How long the node computes one checksum (HASH, XMD5 and so on); then 552. A gigabyte takes a few seconds.",
        ),
        Setting::one(
            "client_left_timeout",
            DURATION,
            "3s",
            "How long an upload whose client has closed the control connection waits for more bytes. It stores what still comes, for at most ten times as long and at most 128 MiB; then it has broken off.",
        ),
        Setting::one(
            "passive_wait",
            DURATION,
            "5s",
            "How long PASV waits for a free port; then 425. One that a session has given up unused is free for its address when its connection has come, or 2 seconds later.",
        ),
        Setting::one(
            "quota_wait",
            DURATION,
            "5s",
            "How long an upload to a home with a quota waits for the home's first count; then 450.",
        ),
        Setting::one("proxy_header_timeout", DURATION, "5s", "For a balancer to send the PROXY header."),
        Setting::one("drain_timeout", DURATION, "5m", "How long transfers may go on after SIGTERM."),
        // Logs
        Setting::one(
            "log_level",
            "error, warn, info, debug or trace",
            "info",
            "As env_logger reads it. rustls, which tells no session, is at error unless it is named: info,rustls=warn.",
        ),
        Setting::one(
            "failure_log_limit",
            "number",
            "60",
            "Lines a minute in the log for failures of one session with the same verb and reason, and for connections of one kind before the login (refused, failed handshake and so on) from one network, ten times as many from all networks; one more line sums up the rest. 0: no limit.",
        ),
        Setting::one("log_format", "text or json", "text", "How a log line is written."),
        Setting::one(
            "transfer_log",
            "path of a file",
            "",
            "One line a transfer in xferlog's format, beside the log; opened again on SIGHUP.",
        ),
    ],
};
