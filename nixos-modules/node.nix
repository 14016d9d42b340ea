# The node role: ftpd.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (pkgs.stdenv) buildPlatform hostPlatform;
  cfg = config.services.distributedFtp;
  cluster = import ./cluster.nix { inherit lib config; };
  inherit (cluster) limits;
  hardening = import ./hardening.nix;
  description = cfg.cluster;
  own = lib.findFirst (node: node.name == cluster.hostName) null cluster.nodes;
  inherit (description) tls;
  acmeDirectory = "/var/lib/acme/${tls.acmeHost}";
  hasBalancers = description.balancers != { };

  # The settings that the cluster's description determines; assertions.nix rejects them in `settings`.
  derived = {
    node_name = own.name;
    listen = [ own.address ];
    port = description.controlPort;
    passive_port_min = description.passivePorts.from;
    passive_port_max = description.passivePorts.to;
    external_address = description.externalAddress;
    trusted_balancers = cluster.trustedBalancers;
    root = cluster.root;
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
    tls_certificates = [ "${runFiles.directory}/certificate.pem" ];
    tls_keys = [ "${runFiles.directory}/key.pem" ];
  }
  // lib.optionalAttrs (tls.acmeHost != null) {
    tls_certificates = [ "${acmeDirectory}/fullchain.pem" ];
    tls_keys = [ "${acmeDirectory}/key.pem" ];
  }
  // cluster.redisSettings
  // cluster.auditSettings logsDirectory
  // lib.optionalAttrs cluster.hasEvents { events_file = "/etc/${eventsEtc}"; }
  # Without a slice the node leases blocks of the range.
  // lib.optionalAttrs cluster.hasExplicitSlices {
    passive_slice = "${toString own.slice.from}-${toString own.slice.to}";
  }
  // lib.optionalAttrs (!cluster.isLeased && !cluster.hasExplicitSlices) {
    cluster_nodes = cluster.nodeNames;
  }
  # The node warns of what nginx breaks.
  // lib.optionalAttrs (description.dataPath == "nginx" && hasBalancers) { nginx_data_path = true; };

  settings = lib.filterAttrs (_: value: value != null) (derived // cfg.ftpd.settings);
  toml = pkgs.formats.toml { };
  configFile = toml.generate "ftpd.toml" settings;

  secrets = lib.filterAttrs (_: file: file != null) {
    authd-token = cluster.secretFile "nodeToken";
    redis-password = cluster.secretFile "redisPassword";
  };
  # Flags, because only systemd knows the path of a credential.
  secretFlags = path: lib.mapAttrsToList (name: _: "--${name}-file ${path name}") secrets;

  hasCertificateFiles = tls.certificateFile != null && tls.keyFile != null;
  # What ftpd reads again on SIGHUP.
  runFiles = import ./run-files.nix { inherit lib pkgs; } {
    name = "ftpd";
    group = "distributed-ftp";
    files =
      lib.optionals hasCertificateFiles [
        {
          name = "certificate.pem";
          path = tls.certificateFile;
        }
        {
          name = "key.pem";
          path = tls.keyFile;
        }
      ]
      ++ lib.mapAttrsToList (name: webhook: {
        name = eventSecretOf name;
        path = webhook.secretFile;
      }) cfg.events.webhooks;
  };
  # With any receiver of events, so that the first webhook needs no restart.
  hasRunFiles = hasCertificateFiles || cluster.hasEvents;

  # The receivers of events. Their names may contain characters that a file name must not.
  eventSecretOf = name: "event-${lib.substring 0 16 (builtins.hashString "sha256" name)}";
  eventFilter = name: receiver: {
    inherit name;
    inherit (receiver)
      events
      users
      groups
      paths
      ;
    retry_for = receiver.retryFor;
  };
  eventsEtc = "distributed-ftp/events.toml";
  eventsFile = toml.generate "events.toml" {
    webhook = lib.mapAttrsToList (
      name: webhook:
      eventFilter name webhook
      // {
        inherit (webhook) url timeout concurrency;
        allow_http = webhook.allowHttp;
        secret_file = "${runFiles.directory}/${eventSecretOf name}";
      }
      // lib.optionalAttrs (webhook.caFile != null) { ca_file = webhook.caFile; }
    ) cfg.events.webhooks;
    stream = lib.optional (cfg.events.stream != null) (
      eventFilter "stream" cfg.events.stream // { inherit (cfg.events.stream) entries; }
    );
    command = lib.mapAttrsToList (
      name: command:
      eventFilter name command
      // {
        inherit (command)
          program
          arguments
          timeout
          concurrency
          ;
      }
    ) cfg.events.commands;
  };

  # The build runs the daemon's own check of its settings; the secrets do not exist there.
  checkedSettings = pkgs.runCommand "ftpd-settings" { } ''
    echo not-the-secret > secret
    ${lib.getExe' cfg.package "ftpd"} --check --config ${configFile} ${
      toString (secretFlags (_: "secret"))
    }
    touch $out
  '';

  # Rounds a limit of the unit up to large steps: each change of a limit restarts the node.
  atLeast = least: needed: if needed <= least then least else atLeast (2 * least) needed;

  # Memory of a node whose limits are all reached at the same time, in bytes:
  # * a session: TLS state, 16 KiB of commands, the kernel's buffers of its connection;
  # * a transfer: three buffers of 264 KiB, its thread, and the kernel's buffers of a data connection (by
  #   default at most 6 MiB to receive or 4 MiB to send);
  # * a connection that the node relays to another node: the kernel's buffers of two sockets, and a pipe;
  # * a file operation: its thread and a few buffers of 32 KiB;
  # * listings: their limit twice, because memory may count twice while it is freed;
  # * the rest: the program, its tables, and trees that are removed or counted for quotas, with 32 KiB for
  #   each level of directories.
  memory =
    let
      kibibyte = 1024;
      mebibyte = 1024 * kibibyte;
    in
    atLeast (2048 * mebibyte) (
      limits.max_sessions * 128 * kibibyte
      + limits.max_transfers * 8 * mebibyte
      + limits.max_relayed * 8 * mebibyte
      + limits.max_file_operations * mebibyte
      + 2 * limits.max_listing_memory
      + 1024 * mebibyte
    );

  # Room for this many folders of a user, because users of the API are not known here.
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
  writesLogs = cfg.ftpd.settings.transfer_log != null || cfg.audit.log == "file";
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

    system.checks = lib.optional (buildPlatform.canExecute hostPlatform) checkedSettings;

    # The daemon cannot load the module itself and works without it. NixOS ignores a missing module.
    boot.kernelModules = lib.mkIf (
      cluster.hasCertificate && (cfg.ftpd.settings.kernel_tls or "auto") != "off"
    ) [ "tls" ];

    environment.etc = {
      "distributed-ftp/ftpd.toml".source = configFile;
    }
    // lib.optionalAttrs cluster.hasEvents { ${eventsEtc}.source = eventsFile; }
    // lib.optionalAttrs hasRunFiles { ${runFiles.etc}.text = runFiles.list; };

    systemd.services.ftpd = {
      description = "FTP node ${own.name}";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      # No dependency on Redis or authd, which may start later, on any host: the node retries.
      after = [
        "network-online.target"
        "redis-ftp.service"
        "authd.service"
        # A new system may start these units together with this one.
        "systemd-modules-load.service"
      ]
      ++ lib.optional (secrets != { }) "distributed-ftp-secrets.service"
      ++ lib.optional (tls.acmeHost != null) "acme-${tls.acmeHost}.service";
      # The node drains while the old system still runs, which keeps the interruption short.
      stopIfChanged = false;
      # SIGHUP makes ftpd apply the settings of the log, read certificates and events_file again, and reopen
      # its files.
      restartTriggers = [ (toml.generate "ftpd-restart.toml" (cluster.needingRestart settings)) ];
      reloadTriggers = [
        configFile
      ]
      ++ lib.optional cluster.hasEvents eventsFile
      ++ lib.optional hasRunFiles config.environment.etc.${runFiles.etc}.source;
      unitConfig = {
        # Before the mount, ftpd would write into the directory below the mount point.
        RequiresMountsFor = cluster.root;
        # Dependencies may come up later than this unit: retry without limit.
        StartLimitIntervalSec = 0;
      };
      serviceConfig = hardening // {
        Type = "notify";
        ExecStart = toString (
          [
            "${lib.getExe' cfg.package "ftpd"} --config /etc/distributed-ftp/ftpd.toml"
            # ProcSubset hides the boot ID from the process; systemd fills it in here.
            "--boot-id %b"
          ]
          ++ secretFlags (name: "%d/${name}")
        );
        ExecStartPre = lib.mkIf hasRunFiles runFiles.command;
        ExecReload = lib.optional hasRunFiles runFiles.command ++ [
          "${lib.getExe' pkgs.coreutils "kill"} -HUP $MAINPID"
        ];
        LoadCredential = lib.mapAttrsToList (name: file: "${name}:${file}") secrets;
        SupplementaryGroups = lib.mkIf (
          tls.acmeHost != null
        ) config.security.acme.certs.${tls.acmeHost}.group;
        User = "distributed-ftp";
        Group = "distributed-ftp";

        # A node that an administrator drained exits with 0 and must stay stopped.
        Restart = "on-failure";
        RestartSec = 2;
        # EX_CONFIG: a restart cannot repair wrong settings.
        RestartPreventExitStatus = 78;
        WatchdogSec = 30;
        # The daemon limits repeated lines itself. journald's own limit could drop important lines.
        LogRateLimitIntervalSec = 0;
        # While the storage hangs, the start hangs too.
        TimeoutStartSec = "2min";
        # The daemon ends before this limit, at its drain limit.
        TimeoutStopSec = limits.drain + 30;

        # Open files: a session has its control connection, home and folders; a waiting or running transfer
        # also its data connection, file and directory; a worker both ends of a pipe; a file operation a
        # few directories; a relayed connection two sockets and two pipes. The rest: passive ports, the depth
        # of a home that is counted for its quota, Redis, authd, metrics.
        LimitNOFILE = atLeast (1024 * 1024) (
          (5 + foldersOfSession) * limits.max_sessions
          + 2 * (limits.max_transfers + limits.max_file_operations)
          + 4 * limits.max_file_operations
          + 6 * limits.max_relayed
          + (description.passivePorts.to - description.passivePorts.from + 1)
          + 1024
        );
        # A thread for each transfer and file operation, and one for each core.
        TasksMax = atLeast 16384 (limits.max_transfers + limits.max_file_operations + 256);

        # Counts the node and the page cache of its files. Above MemoryHigh the kernel frees cache; MemoryMax
        # ends the node before it takes the memory of the rest of the host.
        MemoryMax = lib.mkDefault memory;
        MemoryHigh = lib.mkDefault (memory / 8 * 7);
        # If the host runs out of memory, the kernel ends a node before Redis and authd (0): clients reconnect
        # to another node, but every node needs those two.
        OOMScoreAdjust = 250;

        # For a control port below 1024; no other capability.
        AmbientCapabilities = lib.optional hasPrivilegedPort "CAP_NET_BIND_SERVICE";
        CapabilityBoundingSet = if hasPrivilegedPort then "CAP_NET_BIND_SERVICE" else "";
        # In a private user namespace the capability would have no effect, and files of other users on the
        # storage would appear to belong to nobody.
        PrivateUsers = false;
        # Transfer threads lower their own priority with sched_setattr. The call is in @resources; lowering
        # takes nothing from other processes.
        SystemCallFilter = hardening.SystemCallFilter ++ [ "sched_setattr" ];
        # seccomp cannot inspect openat2's arguments, so systemd forbids the call; the daemon resolves every
        # client's path with it. The storage is mounted nosuid.
        RestrictSUIDSGID = false;
        ReadWritePaths = [ cluster.root ];
        LogsDirectory = lib.mkIf writesLogs "distributed-ftp";
      };
    };

    security.acme.certs = lib.mkIf (tls.acmeHost != null) {
      ${tls.acmeHost}.reloadServices = [ "ftpd.service" ];
    };

    services.logrotate.settings = lib.mkIf writesLogs {
      distributed-ftp = cluster.logRotation // {
        files = "${logsDirectory}/*.log";
        su = "distributed-ftp distributed-ftp";
        # SIGHUP makes ftpd reopen the files.
        postrotate = "${lib.getExe' pkgs.systemd "systemctl"} reload ftpd.service";
      };
    };

    warnings =
      lib.optional (!hasBalancers && lib.length cluster.nodeNames > 1)
        "services.distributedFtp: several nodes and no balancers: clients must be told the nodes' addresses";
  };
}
