# The balancer role: nginx's stream proxy with the configuration from ../nginx, and ftp-relay (relay.nix).
# This nginx is a separate process from services.nginx, so that a change of one never restarts the other.
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
  carriesData = description.dataPath == "nginx";

  nginx = lib.getExe' cfg.nginxPackage "nginx";
  # Below /etc, at a fixed path: nginx starts its successor with the path that it was started with.
  program = "distributed-ftp/nginx";
  file = "distributed-ftp/balancer.conf";
  # Until nginx has read its configuration, it logs to the path that was compiled in.
  command = "/etc/${program} -e stderr -c /etc/${file}";
  pidFile = "/run/ftp-balancer/nginx.pid";
  logs = "/var/log/ftp-balancer";

  # Check first, so that a configuration that nginx refuses makes the reload fail, not only log a line.
  reload = pkgs.writeShellScript "ftp-balancer-reload" ''
    set -eu
    ${command} -t
    # systemd's main process may be the previous nginx, which still carries transfers.
    pid=$(cat ${pidFile})
    if [ "$(readlink "/proc/$pid/exe")" = "$(readlink -f /etc/${program})" ]; then
      kill -HUP "$pid"
      exit
    fi
    # Another nginx program: the new process inherits the listening sockets, and the old one ends after its
    # transfers.
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

  # A process keeps the limit of its start, so this one must suffice for every later number of nodes and
  # sessions. It is the kernel's maximum (fs.nr_open).
  files = 1024 * 1024;

  # Empty with nixpkgs' nginx, which has the stream proxy built in. In other packages it is a module.
  loadModule = pkgs.runCommand "balancer-load-module.conf" { } ''
    case "$(${nginx} -V 2>&1)" in
      *--with-stream=dynamic*) echo "load_module modules/ngx_stream_module.so;" ;;
    esac > $out
  '';

  configuration = import ../nginx/balancer.nix { inherit lib; } {
    inherit files;
    pid = pidFile;
    loadModule = lib.optionalString (pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform) "include ${loadModule};";
    clients =
      lib.length nodes * (limits.max_sessions + (if carriesData then limits.max_transfers else 0));
    shutdownTimeout = "${toString limits.drain}s";
    stream = {
      inherit nodes carriesData;
      controlName = description.nodesDns.name;
      inherit (description.nodesDns) resolvers;
      resolvesUpstreams = lib.versionAtLeast (lib.getVersion cfg.nginxPackage) "1.27.3";
      inherit (own) listenAddresses;
      inherit (description) controlPort;
      inherit (description.tls) implicitPort;
      accessLog = "${logs}/access.log";
      controlTimeout = "${toString (lib.max (4 * 3600) (2 * limits.idle))}s";
      dataTimeout = "${toString (lib.max limits.stall limits.idle + 60)}s";
    };
  };

  hasPrivilegedPort = lib.any (port: port < 1024) (
    cluster.controlPorts ++ lib.optional carriesData description.passivePorts.from
  );
in
{
  imports = [
    ./common.nix
    ./relay.nix
  ];

  config = lib.mkIf (cluster.isBalancer && cluster.usesNginx) {
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
      # nginx may listen on an address that exists only once the network is up.
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      # A new configuration (such as one more node) and a new nginx are reloads: old workers keep their
      # connections. A restart would listen again only after the last transfer.
      reloadTriggers = [
        config.environment.etc.${file}.source
        nginx
      ];
      reloadIfChanged = true;
      unitConfig.StartLimitIntervalSec = 0;
      serviceConfig = hardening // {
        # nginx's first process ends when the second one listens, so the unit is active once clients can
        # connect.
        Type = "forking";
        # A successor writes its own process ID there, and becomes systemd's main process.
        PIDFile = pidFile;
        ExecStart = command;
        ExecReload = reload;
        # SIGTERM would end every connection at once with an orderly end of file, and a client would take
        # half a file for a whole one. After SIGQUIT transfers go on for worker_shutdown_timeout.
        KillSignal = "SIGQUIT";
        # nginx ends before this limit, at worker_shutdown_timeout.
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
        # A capability has no effect on the host's ports inside a private user namespace.
        PrivateUsers = !hasPrivilegedPort;
        # Workers set their own limit of open files (worker_rlimit_nofile).
        SystemCallFilter = hardening.SystemCallFilter ++ [
          "setrlimit"
          "prlimit64"
        ];
      };
    };

    services.logrotate.settings.ftp-balancer = cluster.logRotation // {
      files = "${logs}/*.log";
      su = "ftp-balancer ftp-balancer";
      # SIGUSR1 makes nginx open the file again. It goes to all processes, because there may be two masters.
      postrotate = "${lib.getExe' pkgs.systemd "systemctl"} kill --signal=USR1 ftp-balancer.service";
    };

    # With `proxy_socket_keepalive`, nginx notices a vanished node after these times instead of two hours.
    boot.kernel.sysctl."net.ipv4.tcp_keepalive_time" = lib.mkDefault 120;
  };
}
