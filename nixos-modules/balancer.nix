# The role of the balancer: nginx's stream proxy with the configuration of ../nginx.
{ config, lib, ... }:
let
  cfg = config.services.distributedFtp;
  cluster = import ./cluster.nix { inherit lib config; };
  inherit (cluster) limits;
  description = cfg.cluster;
  own = description.balancers.${cluster.hostName};
  nodes = lib.filter (node: node.address != null) cluster.nodes;

  ports =
    description.passivePorts.to - description.passivePorts.from + 1 + lib.length cluster.controlPorts;
  # As nginx/README.md says. A transfer has its control connection, and one for the data.
  connections =
    2 * (lib.length nodes * (limits.max_sessions + limits.max_transfers))
    + ports * lib.length own.listenAddresses
    + 64;
in
{
  imports = [ ./common.nix ];

  config = lib.mkIf cluster.isBalancer {
    services.nginx = {
      enable = true;
      # A change of the configuration, such as one more node, is a reload: old workers go on with the
      # connections they have.
      enableReload = true;
      # The default one would listen on port 80.
      virtualHosts = { };
      # One worker a core.
      appendConfig = ''
        worker_processes auto;
        worker_rlimit_nofile ${toString (connections + 64)};
        worker_shutdown_timeout ${toString limits.drain}s;
      '';
      eventsConfig = "worker_connections ${toString connections};";
      streamConfig = import ../nginx/stream.nix { inherit lib; } {
        inherit nodes;
        inherit (own) listenAddresses;
        inherit (description) controlPort;
        inherit (description.tls) implicitPort;
        # Where NixOS rotates nginx's logs.
        accessLog = "/var/log/nginx/ftp.log";
        controlTimeout = "${toString (lib.max (4 * 3600) (2 * limits.idle))}s";
        dataTimeout = "${toString (lib.max limits.stall limits.idle + 60)}s";
      };
    };

    systemd.services.nginx = {
      # It may listen on an address that the network has to bring.
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      serviceConfig = {
        LimitNOFILE = connections + 64;
        # Long enough for nginx to let go of transfers, when the host stops.
        TimeoutStopSec = limits.drain + 30;
      };
    };

    # `proxy_socket_keepalive` notices a vanished node at this pace, not after two hours.
    boot.kernel.sysctl."net.ipv4.tcp_keepalive_time" = lib.mkDefault 120;
  };
}
