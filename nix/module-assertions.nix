# Clusters with one mistake each, and words that the assertion's message must contain. → list of problems
{
  lib,
  sample,
  failed,
}:
let
  range = from: to: { inherit from to; };
  cluster = changes: { cluster = changes; };
  kernelPath = changes: cluster ({ dataPath = "kernel"; } // changes);
  floating =
    changes:
    cluster {
      balancers.lb2.address = "10.0.0.9";
      floatingAddress = {
        address = "10.0.0.100";
        interface = "eth0";
      }
      // changes;
    };
  slices =
    a: b: c:
    cluster {
      nodes.ftp1.passivePorts = a;
      nodes.ftp2.passivePorts = b;
      nodes.ftp3.passivePorts = c;
    };

  broken = [
    {
      says = "ftpd.settings.root is set by";
      change.ftpd.settings.root = "/elsewhere";
    }
    {
      says = "authd.settings.console is set by";
      change.authd.settings.console = false;
    }
    {
      says = "ftpd.settings.audit_log is set by";
      change.ftpd.settings.audit_log = "stderr";
    }
    {
      says = "administrators.admin is the administrator of";
      change.administrators.admin.tokenSha256 = builtins.hashString "sha256" "token";
    }
    {
      says = "ftpd.settings.events_file is set by";
      change = {
        ftpd.settings.events_file = "/etc/events.toml";
        events.stream = { };
      };
    }
    {
      says = "events.webhooks.imports has the name of another receiver";
      change.events = {
        webhooks.imports = {
          url = "https://imports.example.com/";
          secretFile = "/run/secrets/imports";
        };
        commands.imports.program = "/bin/sh";
      };
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
      change = cluster {
        passivePorts = range 50000 50001;
        dataPath = "nginx";
      };
    }
    {
      says = "has fewer blocks of 5 ports than there are nodes (3)";
      change = cluster { passivePorts = range 50000 50009; };
    }
    {
      says = "relay.settings.nft_map is set by";
      change.relay.settings.nft_map = "inet t m";
    }
    {
      says = "ftp-relay can carry the data connections too";
      change = cluster {
        controlPath = "relay";
        dataPath = "nginx";
      };
    }
    {
      says = "cluster.nodesDns.name is for nginx";
      change = cluster { nodesDns.name = "ftp-nodes.test"; };
    }
    {
      says = "which ftp-relay on lb1 cannot reach";
      change =
        cluster {
          redis.address = "127.0.0.1";
          redis.host = "backend1";
        }
        // {
          hostName = "lb1";
        };
    }
    {
      says = "overlap port 50007 of ftp-relay's metrics";
      change = cluster { monitoring.relayMetricsPort = 50007; };
    }
    {
      says = "cluster.passivePorts is 50099-50000, in reverse order";
      change = cluster { passivePorts = range 50099 50000; };
    }
    {
      says = "50090-50120, is not within";
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
      says = "but the cluster has no balancer";
      change = kernelPath { balancers = lib.mkForce { }; };
    }
    {
      says = "cluster.dataGateway is not set, and there are several balancers";
      change = kernelPath { balancers.lb2.address = "10.0.0.9"; };
    }
    {
      says = "cluster.floatingAddress.interface is not set";
      change = floating { interface = null; };
    }
    {
      says = "cluster.floatingAddress needs at least two balancers";
      change = cluster {
        floatingAddress = {
          address = "10.0.0.100";
          interface = "eth0";
        };
      };
    }
    {
      says = "is 10.0.0.9, the address of lb2";
      change = floating { address = "10.0.0.9"; };
    }
    {
      says = "is fd00::100, and 10.0.0.10 10.0.0.9 is of another IP version";
      change = floating { address = "fd00::100"; };
    }
    {
      says = "lb2 does not listen on 10.0.0.100";
      change = lib.recursiveUpdate (floating { }) (cluster {
        balancers.lb2.listenAddresses = [ "10.0.0.9" ];
      });
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
      says = "overlap port 50007 of authd";
      change = cluster {
        auth.ftp1 = {
          address = "10.0.0.11";
          port = 50007;
        };
      };
    }
    {
      says = "cluster.tls needs a certificate";
      change = cluster { tls.required = true; };
    }
    {
      says = "cluster.tls needs a certificate";
      change = cluster { tls.implicitPort = 990; };
    }
    {
      says = "only one of certificate and key is set";
      change = cluster { tls.certificateFile = "/run/secrets/certificate"; };
    }
    {
      says = "two certificates are named";
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
      says = "adminTokenFile is not set, and ftp1, which makes the backups";
      change.backup = {
        enable = true;
        host = "ftp1";
      };
    }
    {
      says = "backup.directory is /home/backup, but the unit's sandbox hides /home";
      change.backup = {
        enable = true;
        directory = "/home/backup";
      };
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
      says = "set the device that cephfs mounts";
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
      says = "cluster.redis.sentinels tell where Redis is";
      change = cluster {
        redis.sentinels = [ "10.0.0.21" ];
        redis.sentinelMaster = "ftp";
      };
    }
    {
      says = "cluster.redis.sentinelMaster belong together";
      change = cluster {
        redis.address = null;
        redis.sentinels = [ "10.0.0.21" ];
      };
    }
    {
      says = "cluster.redis.address is not set";
      change = cluster { redis.address = null; };
    }
    {
      says = "monitoring.address is not set";
      change = cluster { monitoring.address = null; } // {
        hostName = "monitor1";
      };
    }
    {
      says = "openFirewall does not support firewalld";
      change.openFirewall = true;
      module.services.firewalld.enable = true;
    }
    {
      says = "would forget a silent data connection before the node ends it";
      change = kernelPath { } // {
        hostName = "lb1";
      };
      module.boot.kernel.sysctl."net.netfilter.nf_conntrack_tcp_timeout_established" = 300;
    }
  ];

  # The same URLs as in the tests of common/src/registry/options.rs: option and daemons accept the same ones.
  redisUrl = (import ../nixos-modules/options/types.nix { inherit lib; }).redisUrl.check;
  wrongUrls =
    map (url: "cluster.redis.url refuses ${url}") (
      lib.filter (url: !(redisUrl url)) [
        "redis"
        "redis:6380"
        "10.0.0.1:6379"
        "redis://cache.example/3"
        "rediss://cache.example"
        "redis://ftp@cache.example:6380"
        "redis://[fd00::1]:6379/2"
        "unix:///run/redis.sock"
        "unix:///run/redis.sock?db=2"
      ]
    )
    ++ map (url: "cluster.redis.url accepts ${url}") (
      lib.filter redisUrl [
        ""
        "rediss://x#insecure"
        "rediss://ftp:secret@cache.example"
        "http://x"
        "a@b"
        "redis://"
        "unix://rel"
        # The password would be in the world-readable store.
        "redis://ftp:secret@cache.example"
        "redis://:secret@cache.example"
      ]
    );

  problemOf =
    {
      says,
      change,
      module ? { },
    }:
    let
      messages = failed (sample.configuration change [ module ]);
    in
    if messages == [ ] then
      [ "no assertion failed; expected: ${says}" ]
    else if !(lib.any (lib.hasInfix says) messages) then
      [ "expected: ${says}; failed: ${lib.concatStringsSep " / " messages}" ]
    else
      [ ];

  # A host of each role without a mistake. Errors other than assertions throw when the host is evaluated.
  problemsOfHost =
    change:
    let
      config = sample.configuration change [ ];
    in
    map (message: "the cluster without a mistake: ${change.hostName}: ${message}") (
      failed config ++ builtins.seq config.system.build.toplevel.drvPath [ ]
    );
in
lib.concatMap (hostName: problemsOfHost { inherit hostName; }) sample.hosts
++
  lib.concatMap
    (
      change:
      lib.concatMap (hostName: problemsOfHost (cluster change // { inherit hostName; })) [
        "ftp1"
        "lb1"
        "monitor1"
      ]
    )
    [
      { dataPath = "kernel"; }
      { dataPath = "nginx"; }
      { controlPath = "relay"; }
      {
        controlPath = "relay";
        dataPath = "kernel";
      }
      {
        nodesDns = {
          name = "ftp-nodes.test";
          resolvers = [ "10.0.0.1" ];
        };
      }
    ]
++
  lib.concatMap
    (
      hostName:
      problemsOfHost {
        inherit hostName;
        backup.enable = true;
      }
    )
    [
      "ftp1"
      "backend1"
    ]
++
  lib.concatMap
    (
      hostName:
      problemsOfHost {
        inherit hostName;
        backup = {
          enable = true;
          host = "vault1";
        };
        secrets = {
          adminTokenFile = "/run/secrets/admin-token";
        };
      }
    )
    [
      "backend1"
      "vault1"
    ]
++ problemsOfHost (cluster { balancers.lb1.isExternal = true; } // { hostName = "ftp1"; })
++
  lib.concatMap
    (
      change:
      lib.concatMap (hostName: problemsOfHost (change // { inherit hostName; })) [
        "ftp1"
        "lb1"
        "lb2"
      ]
    )
    [
      (floating { })
      (lib.recursiveUpdate (floating { gatewayInterface = "eth1"; }) (kernelPath {
        dataGateway = "10.0.0.101";
      }))
      (
        floating { }
        // {
          openFirewall = true;
        }
      )
    ]
++ wrongUrls
++ lib.concatMap problemOf broken
