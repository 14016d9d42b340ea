# The role of an FTP node: ftpd.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.distributedFtp;
  cluster = import ./cluster.nix { inherit lib config; };
  inherit (cluster) limits;
  hardening = import ./hardening.nix;
  description = cfg.cluster;
  own = lib.findFirst (node: node.name == cluster.hostName) null cluster.nodes;
  inherit (description) tls;
  acmeDirectory = "/var/lib/acme/${tls.acmeHost}";
  hasBalancers = description.balancers != { };

  # Everything that the cluster's description decides; assertions.nix keeps it out of `settings`.
  derived = {
    node_name = own.name;
    listen = [ own.address ];
    port = description.controlPort;
    external_address = description.externalAddress;
    trusted_balancers = cluster.trustedBalancers;
    root = cluster.root;
    redis_url = cluster.redisUrl;
    authd_urls = cluster.authUrls;
    admin_listen =
      if cluster.monitoringAddresses == [ ] then
        "127.0.0.1:${toString description.monitoring.metricsPort}"
      else
        "${cluster.bracketed own.address}:${toString description.monitoring.metricsPort}";
  }
  // lib.optionalAttrs cluster.hasCertificate {
    tls = if tls.required then "required" else "optional";
    tls_data = if tls.required then "required" else "optional";
    implicit_tls_port = tls.implicitPort;
  }
  // lib.optionalAttrs hasCertificateFiles {
    tls_certificates = [ "${certificates.directory}/certificate.pem" ];
    tls_keys = [ "${certificates.directory}/key.pem" ];
  }
  // lib.optionalAttrs (tls.acmeHost != null) {
    tls_certificates = [ "${acmeDirectory}/fullchain.pem" ];
    tls_keys = [ "${acmeDirectory}/key.pem" ];
  }
  // (
    if cluster.hasExplicitSlices then
      {
        passive_port_min = own.slice.from;
        passive_port_max = own.slice.to;
      }
    else
      {
        cluster_nodes = cluster.nodeNames;
        passive_port_min = description.passivePorts.from;
        passive_port_max = description.passivePorts.to;
      }
  );

  configFile = (pkgs.formats.toml { }).generate "ftpd.toml" (
    lib.filterAttrs (_: value: value != null) (derived // cfg.ftpd.settings)
  );

  secrets = lib.filterAttrs (_: file: file != null) {
    authd-token = cluster.secretFile "nodeToken";
    redis-password = cluster.secretFile "redisPassword";
  };
  # Flags, because a credential's path is known to systemd only.
  secretFlags = path: lib.mapAttrsToList (name: _: "--${name}-file ${path name}") secrets;

  hasCertificateFiles = tls.certificateFile != null && tls.keyFile != null;
  certificates = import ./run-files.nix { inherit lib pkgs; } {
    name = "ftpd";
    group = "distributed-ftp";
    files = [
      {
        name = "certificate.pem";
        path = tls.certificateFile;
      }
      {
        name = "key.pem";
        path = tls.keyFile;
      }
    ];
  };

  # The daemon itself reads its settings when the system is built; the secrets are not there then.
  checkedSettings = pkgs.runCommand "ftpd-settings" { } ''
    echo not-the-secret > secret
    ${lib.getExe' cfg.package "ftpd"} --check --config ${configFile} ${
      toString (secretFlags (_: "secret"))
    }
    touch $out
  '';

  # A unit's limit that grows in steps, far from what it needs: to change it restarts the node.
  atLeast = least: needed: if needed <= least then least else atLeast (2 * least) needed;

  # The memory of a node all of whose limits are reached at the same time, in bytes. A session has its TLS, 16 KiB
  # of commands and the kernel's buffers of its connection; a transfer three buffers of 264 KiB, its thread, and
  # the kernel's buffers of a data connection (at most 6 MiB to receive or 4 MiB to send by default); an
  # operation its thread and a few buffers of 32 KiB. A listing's memory may be counted twice while it is given
  # back. The rest: the program, its tables, and the depth of a home that is counted for its quota.
  memory =
    let
      kibibyte = 1024;
      mebibyte = 1024 * kibibyte;
    in
    atLeast (2048 * mebibyte) (
      limits.max_sessions * 128 * kibibyte
      + limits.max_transfers * 8 * mebibyte
      + limits.max_file_operations * mebibyte
      + 2 * limits.max_listing_memory
      + 256 * mebibyte
    );

  # Users that are made through the API are not known here: room for as many folders as this.
  foldersOfSession =
    let
      ofUser =
        user:
        lib.length user.folders
        + lib.foldl' (sum: name: sum + lib.length (cfg.groups.${name}.folders or [ ])) 0 user.groups;
    in
    lib.foldl' lib.max 8 (map ofUser (lib.attrValues cfg.users));

  hasPrivilegedPort = lib.any (port: port < 1024) cluster.controlPorts;
  logsDirectory = "/var/log/distributed-ftp";
  writesTransferLog = cfg.ftpd.settings.transfer_log != null;
in
{
  imports = [ ./common.nix ];

  config = lib.mkIf (cluster.isNode && own.address != null) {
    users.users.distributed-ftp = {
      isSystemUser = true;
      description = "Owner of the files of Distributed FTP";
      group = "distributed-ftp";
      inherit (description.storage) uid;
    };
    users.groups.distributed-ftp.gid = description.storage.gid;

    system.checks = lib.optional (pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform) checkedSettings;

    # The daemon cannot load it, and does without where the kernel has none; NixOS ignores that, too.
    boot.kernelModules = lib.mkIf (
      cluster.hasCertificate && (cfg.ftpd.settings.kernel_tls or "auto") != "off"
    ) [ "tls" ];

    environment.etc = {
      "distributed-ftp/ftpd.toml".source = configFile;
    }
    // lib.optionalAttrs hasCertificateFiles { ${certificates.etc}.text = certificates.list; };

    systemd.services.ftpd = {
      description = "FTP node ${own.name}";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      # Redis and authd may come later than this, on this host or another: the node waits for neither.
      after = [
        "network-online.target"
        "redis-ftp.service"
        "authd.service"
        # Which a new system may start together with this.
        "systemd-modules-load.service"
      ]
      ++ lib.optional (secrets != { }) "distributed-ftp-secrets.service"
      ++ lib.optional (tls.acmeHost != null) "acme-${tls.acmeHost}.service";
      # Drains while the old system is still whole, and is away no longer than it must be.
      stopIfChanged = false;
      # SIGHUP reads certificates again and opens the log of transfers; settings need a new process.
      restartTriggers = [ configFile ];
      reloadTriggers = lib.optional hasCertificateFiles config.environment.etc.${certificates.etc}.source;
      unitConfig = {
        # Started too early, it would write into the directory below the mount point.
        RequiresMountsFor = cluster.root;
        # What it misses at boot comes up sometime: it tries until then.
        StartLimitIntervalSec = 0;
      };
      serviceConfig = hardening // {
        Type = "notify";
        ExecStart = toString (
          [
            "${lib.getExe' cfg.package "ftpd"} --config /etc/distributed-ftp/ftpd.toml"
            # ProcSubset hides it. systemd puts it in.
            "--boot-id %b"
          ]
          ++ secretFlags (name: "%d/${name}")
        );
        ExecStartPre = lib.mkIf hasCertificateFiles certificates.command;
        ExecReload = lib.optional hasCertificateFiles certificates.command ++ [
          "${lib.getExe' pkgs.coreutils "kill"} -HUP $MAINPID"
        ];
        LoadCredential = lib.mapAttrsToList (name: file: "${name}:${file}") secrets;
        SupplementaryGroups = lib.mkIf (
          tls.acmeHost != null
        ) config.security.acme.certs.${tls.acmeHost}.group;
        User = "distributed-ftp";
        Group = "distributed-ftp";

        # A node that was drained on purpose exits with 0 and stays away.
        Restart = "on-failure";
        RestartSec = 2;
        # EX_CONFIG: the settings will not be better the next time.
        RestartPreventExitStatus = 78;
        WatchdogSec = 30;
        # The daemon limits repeated lines itself. journald's limit would drop the lines that matter.
        LogRateLimitIntervalSec = 0;
        # A start lasts as long as a storage that hangs.
        TimeoutStartSec = "2min";
        # The daemon ends by itself at its drain limit.
        TimeoutStopSec = limits.drain + 30;

        # A session has its control connection, its home and its folders, and from the moment that a
        # transfer waits for its turn, the data connection, the file and its directory; a thread both
        # ends of a pipe; an operation a few directories. The rest: every passive port, the depth of a
        # home that is counted for its quota, Redis, authd, metrics.
        LimitNOFILE = atLeast (1024 * 1024) (
          (5 + foldersOfSession) * limits.max_sessions
          + 2 * (limits.max_transfers + limits.max_file_operations)
          + 4 * limits.max_file_operations
          + (own.slice.to - own.slice.from + 1)
          + 1024
        );
        # A thread for each transfer and operation, and one a core.
        TasksMax = atLeast 16384 (limits.max_transfers + limits.max_file_operations + 256);

        # The node and the page cache of the files that it reads. From MemoryHigh on the kernel frees the cache;
        # MemoryMax ends the node before it takes the memory of the rest of the host.
        MemoryMax = lib.mkDefault memory;
        MemoryHigh = lib.mkDefault (memory / 8 * 7);
        # Where the host itself is short, the kernel ends a node before Redis and authd (0): clients connect to
        # another node, but every node needs those two.
        OOMScoreAdjust = 250;

        # The control port is below 1024. Nothing else of root's power.
        AmbientCapabilities = lib.optional hasPrivilegedPort "CAP_NET_BIND_SERVICE";
        CapabilityBoundingSet = if hasPrivilegedPort then "CAP_NET_BIND_SERVICE" else "";
        # In a user namespace of its own the capability would not count, and files of others on the
        # storage would all seem to be nobody's.
        PrivateUsers = false;
        # Transfers stand back for what is short. It is one of @resources, and gives a process nothing
        # that others lose.
        SystemCallFilter = hardening.SystemCallFilter ++ [ "sched_setattr" ];
        # systemd cannot look into openat2's arguments, and forbids it as a whole; the daemon resolves
        # every client's path with it. The storage is mounted nosuid.
        RestrictSUIDSGID = false;
        ReadWritePaths = [ cluster.root ];
        LogsDirectory = lib.mkIf writesTransferLog "distributed-ftp";
      };
    };

    security.acme.certs = lib.mkIf (tls.acmeHost != null) {
      ${tls.acmeHost}.reloadServices = [ "ftpd.service" ];
    };

    services.logrotate.settings = lib.mkIf writesTransferLog {
      distributed-ftp = {
        files = "${logsDirectory}/*.log";
        frequency = "weekly";
        rotate = 26;
        compress = true;
        delaycompress = true;
        missingok = true;
        notifempty = true;
        su = "distributed-ftp distributed-ftp";
        # SIGHUP: the file is opened again.
        postrotate = "${lib.getExe' pkgs.systemd "systemctl"} reload ftpd.service";
      };
    };

    warnings =
      lib.optional (!hasBalancers && lib.length cluster.nodeNames > 1)
        "services.distributedFtp: several nodes and no balancers: clients must be told the nodes' addresses";
  };
}
