# The VM tests of a package, one scenario a file. They are its `passthru.tests` and checks of the flake.
# `nix build .#checks.x86_64-linux.vm-cluster`, or ./dev vm-test cluster.
{
  lib,
  testers,
  package,
}:
let
  test = import ./lib { inherit lib testers package; };
in
lib.mapAttrs' (name: file: lib.nameValuePair "vm-${name}" (test ({ inherit name; } // import file)))
  {
    single-node = ./single-node.nix;
    cluster = ./cluster.nix;
    failover = ./failover.nix;
    drain = ./drain.nix;
    auth-outage = ./auth-outage.nix;
    redis-restart = ./redis-restart.nix;
    nfs-outage = ./nfs-outage.nix;
    tls = ./tls.nix;
    real-address = ./real-address.nix;
    partition = ./partition.nix;
    one-writer = ./one-writer.nix;
    firewall = ./firewall.nix;
    kernel-data-path = ./kernel-data-path.nix;
    scale-out = ./scale-out.nix;
    elastic = ./elastic.nix;
    reload = ./reload.nix;
    console = ./console.nix;
    floating-address = ./floating-address.nix;
  }
