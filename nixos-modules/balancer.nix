# The role of the balancer: nginx's stream proxy with the configuration of ../nginx. A process of its
# own beside services.nginx, so that neither's changes restart the other.
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
  own = description.balancers.${cluster.hostName};
  nodes = lib.filter (node: node.address != null) cluster.nodes;

  nginx = lib.getExe' cfg.nginxPackage "nginx";
  # Below /etc. nginx starts its successor by the name that it was started with itself.
  program = "distributed-ftp/nginx";
  file = "distributed-ftp/balancer.conf";
  # Before it has read its configuration, nginx logs to a place that its package chose.
  command = "/etc/${program} -e stderr -c /etc/${file}";
  pidFile = "/run/ftp-balancer/nginx.pid";
  logs = "/var/log/ftp-balancer";

  # A configuration that nginx refuses is an error of the reload, not only a line in the log.
  reload = pkgs.writeShellScript "ftp-balancer-reload" ''
    set -eu
    ${command} -t
    # systemd's main process may be the predecessor, which still has transfers.
    pid=$(cat ${pidFile})
    if [ "$(readlink "/proc/$pid/exe")" = "$(readlink -f /etc/${program})" ]; then
      kill -HUP "$pid"
      exit
    fi
    # Another nginx: it inherits the listening sockets, and the old one ends after its transfers.
    kill -USR2 "$pid"
    for _ in $(seq 100); do
      successor=$(cat ${pidFile} 2> /dev/null || true)
      if [ "''${successor:-$pid}" != "$pid" ]; then
        kill -QUIT "$pid"
        exit
      fi
      sleep 0.1
    done
    echo "the new nginx did not start, or an older one still has transfers; nginx $pid goes on" >&2
    kill -HUP "$pid"
    exit 1
  '';

  # A process's limit is that of its start: this one is enough for every number of nodes and sessions.
  # It is also the most that the kernel allows (fs.nr_open).
  files = 1024 * 1024;

  # Empty with nixpkgs' nginx. Other packages may have the stream proxy as a module.
  loadModule = pkgs.runCommand "balancer-load-module.conf" { } ''
    case "$(${nginx} -V 2>&1)" in
      *--with-stream=dynamic*) echo "load_module modules/ngx_stream_module.so;" ;;
    esac > $out
  '';

  configuration = import ../nginx/balancer.nix { inherit lib; } {
    inherit files;
    pid = pidFile;
    loadModule = lib.optionalString (pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform) "include ${loadModule};";
    # A transfer has its control connection, and one for the data.
    clients = lib.length nodes * (limits.max_sessions + limits.max_transfers);
    shutdownTimeout = "${toString limits.drain}s";
    stream = {
      inherit nodes;
      inherit (own) listenAddresses;
      inherit (description) controlPort;
      inherit (description.tls) implicitPort;
      accessLog = "${logs}/access.log";
      controlTimeout = "${toString (lib.max (4 * 3600) (2 * limits.idle))}s";
      dataTimeout = "${toString (lib.max limits.stall limits.idle + 60)}s";
    };
  };

  hasPrivilegedPort = lib.any (port: port < 1024) (
    cluster.controlPorts ++ [ description.passivePorts.from ]
  );
in
{
  imports = [ ./common.nix ];

  config = lib.mkIf cluster.isBalancer {
    users.users.ftp-balancer = {
      isSystemUser = true;
      description = "Balancer of Distributed FTP";
      group = "ftp-balancer";
    };
    users.groups.ftp-balancer = { };

    environment.etc = {
      ${program}.source = nginx;
      ${file}.text = configuration;
    };

    systemd.services.ftp-balancer = {
      description = "Balancer of Distributed FTP";
      documentation = [ "https://nginx.org/en/docs/stream/ngx_stream_core_module.html" ];
      wantedBy = [ "multi-user.target" ];
      # It may listen on an address that the network has to bring.
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      # A new configuration, such as one more node, is a reload, and so is a new nginx: old workers keep
      # the connections that they have. A restart would listen again only after the last transfer.
      reloadTriggers = [
        config.environment.etc.${file}.source
        nginx
      ];
      reloadIfChanged = true;
      unitConfig.StartLimitIntervalSec = 0;
      serviceConfig = hardening // {
        # The first process ends when the second listens, so the unit is up when clients can connect.
        Type = "forking";
        # A successor writes itself there, and systemd takes it for the main process in its turn.
        PIDFile = pidFile;
        ExecStart = command;
        ExecReload = reload;
        # SIGTERM would end every connection at once, with an end of file that looks orderly: a client
        # would take half a file for a whole one. After SIGQUIT transfers go on for
        # worker_shutdown_timeout.
        KillSignal = "SIGQUIT";
        # nginx ends by itself before this, at worker_shutdown_timeout.
        TimeoutStopSec = 3600 * (1 + (limits.drain + 60) / 3600);
        Restart = "always";
        RestartSec = 2;

        User = "ftp-balancer";
        Group = "ftp-balancer";
        RuntimeDirectory = "ftp-balancer";
        LogsDirectory = "ftp-balancer";
        LogsDirectoryMode = "0750";
        UMask = "0027";

        LimitNOFILE = files;
        AmbientCapabilities = lib.optional hasPrivilegedPort "CAP_NET_BIND_SERVICE";
        CapabilityBoundingSet = if hasPrivilegedPort then "CAP_NET_BIND_SERVICE" else "";
        # In a user namespace of its own the capability would not count.
        PrivateUsers = !hasPrivilegedPort;
        # Workers set their limit of files (worker_rlimit_nofile).
        SystemCallFilter = hardening.SystemCallFilter ++ [
          "setrlimit"
          "prlimit64"
        ];
      };
    };

    services.logrotate.settings.ftp-balancer = {
      files = "${logs}/*.log";
      frequency = "weekly";
      rotate = 26;
      compress = true;
      delaycompress = true;
      missingok = true;
      notifempty = true;
      su = "ftp-balancer ftp-balancer";
      # SIGUSR1: nginx opens the file again; all of its processes, as there may be two masters.
      postrotate = "${lib.getExe' pkgs.systemd "systemctl"} kill --signal=USR1 ftp-balancer.service";
    };

    # `proxy_socket_keepalive` notices a vanished node at this pace, not after two hours.
    boot.kernel.sysctl."net.ipv4.tcp_keepalive_time" = lib.mkDefault 120;
  };
}
