# A sample cluster with each role on a separate host, for checks that evaluate changes of it.
{
  lib,
  nixpkgs,
  self,
  system,
}:
rec {
  # services.distributedFtp on all hosts.
  good = {
    enable = true;
    hostName = "ftp1";
    cluster = {
      nodes.ftp1.address = "10.0.0.11";
      nodes.ftp2.address = "10.0.0.12";
      nodes.ftp3.address = "10.0.0.13";
      balancers.lb1.address = "10.0.0.10";
      auth.backend1.address = "10.0.0.20";
      redis.address = "10.0.0.20";
      storage = {
        type = "nfs";
        server = "10.0.0.20";
        export = "/srv/ftp";
      };
      monitoring = {
        host = "monitor1";
        address = "10.0.0.30";
        grafana = true;
      };
    };
    secrets = {
      nodeTokenFile = "/run/secrets/node-token";
      redisPasswordFile = "/run/secrets/redis-password";
    };
    users.demo.hashedPasswordFile = "/run/secrets/demo";
  };

  # One host for each role.
  hosts = [
    "ftp1"
    "lb1"
    "backend1"
    "monitor1"
  ];

  # The configuration of the host `hostName` with changes to `good` and further modules.
  configuration =
    changes: modules:
    (nixpkgs.lib.nixosSystem {
      modules = modules ++ [
        self.nixosModules.default
        {
          services.distributedFtp = lib.recursiveUpdate good changes;
          nixpkgs.hostPlatform = system;
          system.stateVersion = "26.05";
          fileSystems."/" = {
            device = "/dev/disk/by-label/nixos";
            fsType = "ext4";
          };
          boot.loader.systemd-boot.enable = true;
        }
      ];
    }).config;
}
