# services.distributedFtp: one description of the cluster, imported unchanged by every host, which
# takes its roles from its own name.
{
  imports = [
    ./node.nix
    ./balancer.nix
    ./floating-address.nix
    ./data-path.nix
    ./auth.nix
    ./redis.nix
    ./storage.nix
    ./monitoring.nix
    ./backup.nix
  ];
}
