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
  # on such a port would keep ftpd, ftp-relay or nginx from listening there; in the kernel's data path its
  # replies would go through the balancer. So every node and balancer reserves the whole range.
  config = lib.mkIf (cluster.isNode || cluster.isBalancer) {
    boot.kernel.sysctl."net.ipv4.ip_local_reserved_ports" =
      lib.mkDefault "${toString passivePorts.from}-${toString passivePorts.to}";
  };
}
