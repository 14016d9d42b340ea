# What every role needs: the options, their assertions, and the hosts' shared parts.
{ config, lib, ... }:
let
  cluster = import ./cluster.nix { inherit lib config; };
  inherit (config.services.distributedFtp.cluster) passivePorts;
in
{
  imports = [
    ./options
    ./assertions.nix
    ./firewall.nix
    ./secrets.nix
  ];

  # The range lies among the ports that Linux gives to outgoing connections. One that holds such a port
  # would keep nginx or ftpd from listening on it: when it starts, or when a node is added. And in the
  # kernel's data path it would be answered through the balancer. The whole range on each host, as slices
  # move.
  config = lib.mkIf (cluster.isNode || cluster.isBalancer) {
    boot.kernel.sysctl."net.ipv4.ip_local_reserved_ports" =
      lib.mkDefault "${toString passivePorts.from}-${toString passivePorts.to}";
  };
}
