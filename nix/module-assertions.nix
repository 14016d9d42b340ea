# Clusters with one mistake each, and the words that must be said about it. → list of problems
{
  lib,
  nixpkgs,
  self,
  system,
  failed,
}:
let
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
    };
    secrets = {
      nodeTokenFile = "/run/secrets/node-token";
      redisPasswordFile = "/run/secrets/redis-password";
    };
    users.demo.hashedPasswordFile = "/run/secrets/demo";
  };

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

  range = from: to: { inherit from to; };
  cluster = changes: { cluster = changes; };
  kernelPath = changes: cluster ({ dataPath = "kernel"; } // changes);
  slices =
    a: b: c:
    cluster {
      nodes.ftp1.passivePorts = a;
      nodes.ftp2.passivePorts = b;
      nodes.ftp3.passivePorts = c;
    };

  broken = [
    {
      says = "ftpd.settings.root is decided by";
      change.ftpd.settings.root = "/elsewhere";
    }
    {
      says = "gives no role to this host, ftp9";
      change.hostName = "ftp9";
    }
    {
      says = "cluster.nodes.ftp2.address is not set";
      change = cluster { nodes.ftp2.address = null; };
    }
    {
      says = "openFirewall cannot let in the node ftp2";
      change = cluster { nodes.ftp2.address = null; } // {
        openFirewall = true;
      };
    }
    {
      says = "cluster.balancers.lb1.address is not set";
      change = cluster { balancers.lb1.address = null; };
    }
    {
      says = "has fewer ports than there are nodes (3)";
      change = cluster { passivePorts = range 50000 50001; };
    }
    {
      says = "cluster.passivePorts is 50099-50000, upside down";
      change = cluster { passivePorts = range 50099 50000; };
    }
    {
      says = "50090-50120, does not fit into";
      change = slices (range 50000 50049) (range 50050 50089) (range 50090 50120);
    }
    {
      says = "of ftp1, 50000-50049, and of ftp2, 50049-50080, overlap";
      change = slices (range 50000 50049) (range 50049 50080) (range 50081 50099);
    }
    {
      says = "passivePorts is set for ftp1 only";
      change = cluster { nodes.ftp1.passivePorts = range 50000 50010; };
    }
    {
      says = "a control port, 50050, lies within";
      change = cluster { controlPort = 50050; };
    }
    {
      says = "takes port 21 of the node on the same host";
      change = cluster { balancers.ftp1.address = "10.0.0.11"; };
    }
    {
      says = "there is no balancer whose kernel it could be";
      change = kernelPath { balancers = lib.mkForce { }; };
    }
    {
      says = "cluster.dataGateway is not set, and there are several balancers";
      change = kernelPath { balancers.lb2.address = "10.0.0.9"; };
    }
    {
      says = "ftp1 is a balancer and a node";
      change = kernelPath {
        dataGateway = "10.0.0.10";
        balancers.ftp1 = {
          address = "10.0.0.11";
          listenAddresses = [ "203.0.113.11" ];
        };
      };
    }
    {
      says = "is no gateway for the node ftp2, fd00::12";
      change = kernelPath { nodes.ftp2.address = "fd00::12"; };
    }
    {
      says = "meet port 50007 of authd";
      change = cluster {
        auth.ftp1 = {
          address = "10.0.0.11";
          port = 50007;
        };
      };
    }
    {
      says = "cluster.tls is asked for without a certificate";
      change = cluster { tls.required = true; };
    }
    {
      says = "cluster.tls is asked for without a certificate";
      change = cluster { tls.implicitPort = 990; };
    }
    {
      says = "a certificate needs its key";
      change = cluster { tls.certificateFile = "/run/secrets/certificate"; };
    }
    {
      says = "there are two certificates";
      change = cluster {
        tls = {
          certificateFile = "/run/secrets/certificate";
          keyFile = "/run/secrets/key";
          acmeHost = "ftp.example.org";
        };
      };
    }
    {
      says = "tls.implicitPort is the control port";
      change = cluster {
        tls = {
          certificateFile = "/run/secrets/certificate";
          keyFile = "/run/secrets/key";
          implicitPort = 21;
        };
      };
    }
    {
      says = "secrets.nodeTokenFile is not set";
      change.secrets.nodeTokenFile = null;
    }
    {
      says = "secrets.adminTokenFile is the same file as nodeTokenFile";
      change.secrets.adminTokenFile = "/run/secrets/node-token";
    }
    {
      says = "Redis can be reached from outside at 10.0.0.20";
      change.secrets.redisPasswordFile = null;
    }
    {
      says = "users.ann.hashedPasswordFile is not set";
      change.users.ann.home = "/ann";
    }
    {
      says = "the nodes mount 10.0.0.99:/srv/ftp, the server exports 10.0.0.20:/srv/ftp";
      change = cluster { storage.device = "10.0.0.99:/srv/ftp"; };
    }
    {
      says = "which is not an address of ftp2, the server";
      change = cluster { storage.host = "ftp2"; };
    }
    {
      says = "nfs needs `server` and `export`";
      change = cluster { storage.export = null; };
    }
    {
      says = "is a directory, but there are 3 nodes";
      change = cluster {
        storage.type = "directory";
        storage.host = null;
      };
    }
    {
      says = "say what cephfs mounts";
      change = cluster {
        storage.type = "cephfs";
        storage.host = null;
      };
    }
    {
      says = "this module makes no glusterfs server";
      change = cluster {
        storage.type = "glusterfs";
        storage.host = "backend1";
      };
    }
    {
      says = "cluster.auth is empty";
      change = cluster { auth = lib.mkForce { }; };
    }
    {
      says = "cluster.redis.address is not set";
      change = cluster { redis.address = null; };
    }
    {
      says = "monitoring.address is not set";
      change = cluster { monitoring.host = "ftp1"; };
    }
    {
      says = "would forget a silent data connection before the node ends it";
      change = kernelPath { } // {
        hostName = "lb1";
      };
      module.boot.kernel.sysctl."net.netfilter.nf_conntrack_tcp_timeout_established" = 300;
    }
  ];

  problemOf =
    {
      says,
      change,
      module ? { },
    }:
    let
      messages = failed (configuration change [ module ]);
    in
    if messages == [ ] then
      [ "nothing was said, but expected: ${says}" ]
    else if !(lib.any (lib.hasInfix says) messages) then
      [ "expected: ${says}; was said: ${lib.concatStringsSep " / " messages}" ]
    else
      [ ];
in
map (message: "the cluster without a mistake: ${message}") (
  failed (configuration { } [ ]) ++ failed (configuration (kernelPath { }) [ ])
)
++ lib.concatMap problemOf broken
