# Parts that every role needs: options, assertions, and settings of the host.
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

  # The passive range lies among the ports that Linux gives to outgoing connections. An outgoing connection
  # on such a port would keep nginx or ftpd from listening there, at a start or when a node is added; in
  # the kernel's data path its replies would go through the balancer. So every host reserves the whole
  # range, because slices can move.
  config = lib.mkIf (cluster.isNode || cluster.isBalancer) {
    boot.kernel.sysctl."net.ipv4.ip_local_reserved_ports" =
      lib.mkDefault "${toString passivePorts.from}-${toString passivePorts.to}";
  };
}
