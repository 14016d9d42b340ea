# The relay on a balancer: ftp-relay carries each data connection to the node that owns its port. With the
# kernel's data path it also tells the kernel the owners.
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
  own = description.balancers.${cluster.hostName};
  inherit (description) passivePorts monitoring;
  carriesControl = description.controlPath == "relay";

  # The settings that the cluster's description determines; assertions.nix rejects them in `settings`.
  derived = {
    listen = own.listenAddresses;
    passive_port_min = passivePorts.from;
    passive_port_max = passivePorts.to;
    admin_listen =
      if cluster.monitoringAddresses == [ ] then
        "127.0.0.1:${toString monitoring.relayMetricsPort}"
      else
        "${cluster.bracketed own.address}:${toString monitoring.relayMetricsPort}";
    # The node gives up a silent connection first.
    stall_timeout = "${toString (lib.max limits.stall limits.idle + 60)}s";
    nft_map = if cluster.isKernelPath then "inet ftp_data_path owners" else null;
  }
  // cluster.redisSettings
  // lib.optionalAttrs carriesControl {
    control_port = description.controlPort;
    implicit_tls_port = description.tls.implicitPort;
    control_timeout = "${toString (lib.max (4 * 3600) (2 * limits.idle))}s";
  };

  settings = lib.filterAttrs (_: value: value != null) (derived // cfg.relay.settings);
  toml = pkgs.formats.toml { };
  configFile = toml.generate "ftp-relay.toml" settings;

  secrets = lib.filterAttrs (_: file: file != null) {
    redis-password = cluster.secretFile "redisPassword";
  };
  secretFlags = path: lib.mapAttrsToList (name: _: "--${name}-file ${path name}") secrets;
  program = lib.getExe' cfg.package "ftp-relay";

  # The build runs the program's own check of its settings; the secret does not exist there.
  checkedSettings = pkgs.runCommand "ftp-relay-settings" { } ''
    echo not-the-secret > secret
    ${program} --check --config ${configFile} ${toString (secretFlags (_: "secret"))}
    touch $out
  '';

  privileged =
    lib.optional (
      passivePorts.from < 1024 || (carriesControl && lib.any (port: port < 1024) cluster.controlPorts)
    ) "CAP_NET_BIND_SERVICE"
    # For the owners of the ports in the kernel's data path.
    ++ lib.optional cluster.isKernelPath "CAP_NET_ADMIN";
in
{
  imports = [ ./common.nix ];

  config = lib.mkIf (cluster.isRelay && own.address != null) {
    environment.etc."distributed-ftp/ftp-relay.toml".source = configFile;
    system.checks = lib.optional (buildPlatform.canExecute hostPlatform) checkedSettings;

    systemd.services.ftp-relay = {
      description = "Relay of Distributed FTP";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      # No dependency on Redis, which may start later, on any host: the relay waits for it.
      after = [
        "network-online.target"
        "redis-ftp.service"
      ]
      ++ lib.optional cluster.isKernelPath "ftp-data-path.service"
      ++ lib.optional (secrets != { }) "distributed-ftp-secrets.service";
      # Keeps the interruption short.
      stopIfChanged = false;
      # SIGHUP makes ftp-relay apply the settings of the log.
      restartTriggers = [ (toml.generate "ftp-relay-restart.toml" (cluster.needingRestart settings)) ];
      reloadTriggers = [ configFile ];
      path = lib.optional cluster.isKernelPath pkgs.nftables;
      unitConfig.StartLimitIntervalSec = 0;
      serviceConfig =
        hardening
        // {
          Type = "notify";
          ExecStart = toString (
            [ "${program} --config /etc/distributed-ftp/ftp-relay.toml" ] ++ secretFlags (name: "%d/${name}")
          );
          ExecReload = "${lib.getExe' pkgs.coreutils "kill"} -HUP $MAINPID";
          LoadCredential = lib.mapAttrsToList (name: file: "${name}:${file}") secrets;
          # ftp-relay writes no files.
          DynamicUser = true;

          Restart = "on-failure";
          RestartSec = 2;
          # EX_CONFIG: a restart cannot repair wrong settings.
          RestartPreventExitStatus = 78;
          WatchdogSec = 30;
          # The program limits repeated lines itself. journald's own limit could drop important lines.
          LogRateLimitIntervalSec = 0;
          # The program ends before this limit, at its drain limit.
          TimeoutStopSec = cluster.seconds cfg.relay.settings.drain_timeout + 30;

          # Open files: two sockets and two pipes for each data connection, two sockets for each control
          # connection, the passive ports on each address, Redis, metrics. It is the kernel's maximum
          # (fs.nr_open).
          LimitNOFILE = 1024 * 1024;
          TasksMax = 1024;

          AmbientCapabilities = privileged;
          CapabilityBoundingSet = if privileged == [ ] then "" else privileged;
          # A capability has no effect on the host's ports and rules inside a private user namespace.
          PrivateUsers = privileged == [ ];
        }
        // lib.optionalAttrs cluster.isKernelPath {
          RestrictAddressFamilies = hardening.RestrictAddressFamilies ++ [
            # nft
            "AF_NETLINK"
          ];
        };
    };
  };
}
