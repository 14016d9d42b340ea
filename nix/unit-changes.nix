# Changes of a running cluster, with the units that must keep running and those that must be reloaded. Units
# are compared as switch-to-configuration does: it restarts a unit whose text changes. → list of problems
{ lib, sample }:
let
  slices = from: {
    inherit from;
    to = from + 9;
  };
  # The nodes ftp1, ftp2 and so on, with further options of each.
  nodesWith = options: count: {
    cluster.nodes = lib.genAttrs (map (n: "ftp${toString n}") (lib.range 1 count)) (
      name:
      let
        number = lib.toInt (lib.removePrefix "ftp" name);
      in
      { address = "10.0.0.${toString (10 + number)}"; } // options number
    );
  };
  nodes = nodesWith (_: { });
  # Slices set by hand, so that a new node does not move the others.
  nodesWithSlices =
    count:
    lib.recursiveUpdate (nodesWith (number: { passivePorts = slices (50000 + 10 * number); }) count) {
      cluster.dataPath = "nginx";
    };
  onKernelPath = count: lib.recursiveUpdate (nodes count) { cluster.dataPath = "kernel"; };
  folders = count: {
    users.demo.folders = map (n: {
      path = "/team${toString n}";
      target = "/teams/${toString n}";
    }) (lib.range 1 count);
  };
  administrators = names: {
    administrators = lib.genAttrs names (name: {
      tokenSha256 = builtins.hashString "sha256" name;
    });
  };
  webhooks = names: {
    events = {
      stream = { };
      webhooks = lib.genAttrs names (name: {
        url = "https://${name}.example.com/";
        secretFile = "/run/secrets/${name}";
      });
    };
  };
  certificate = name: {
    cluster.tls = {
      certificateFile = "/run/secrets/${name}.pem";
      keyFile = "/run/secrets/${name}-key.pem";
    };
  };

  changes = [
    {
      what = "one more node";
      before = nodes 3;
      after = nodes 4;
      keeps = {
        ftp1 = [ "ftpd" ];
        lb1 = [
          "ftp-balancer"
          "ftp-relay"
        ];
        backend1 = [
          "authd"
          "redis-ftp"
          "nfs-server"
          "nfs-mountd"
        ];
      };
      reloads = {
        lb1 = [ "ftp-balancer" ];
        backend1 = [ "distributed-ftp-exports" ];
      };
    }
    {
      what = "one more node, with the kernel's data path";
      before = onKernelPath 3;
      after = onKernelPath 4;
      keeps = {
        ftp1 = [
          "ftpd"
          "ftp-node-replies"
        ];
        lb1 = [ "ftp-relay" ];
      };
      reloads.ftp1 = [ "ftp-node-replies" ];
    }
    {
      what = "one more node, with nginx as the data path";
      before = nodesWithSlices 3;
      after = nodesWithSlices 4;
      keeps = {
        ftp1 = [ "ftpd" ];
        lb1 = [ "ftp-balancer" ];
      };
      reloads.lb1 = [ "ftp-balancer" ];
    }
    {
      what = "other limits of the nodes";
      before = { };
      after.ftpd.settings = {
        max_sessions = 20000;
        max_transfers = 4000;
        drain_timeout = "20m";
      };
      keeps = {
        lb1 = [ "ftp-balancer" ];
        backend1 = [ "authd" ];
      };
      reloads.lb1 = [ "ftp-balancer" ];
    }
    {
      what = "one more administrator";
      before = administrators [ "ann" ];
      after = administrators [
        "ann"
        "bob"
      ];
      keeps = {
        ftp1 = [ "ftpd" ];
        backend1 = [ "authd" ];
      };
      reloads.backend1 = [ "authd" ];
    }
    {
      what = "the first webhook beside a stream, and one more";
      before = webhooks [ ];
      after = webhooks [
        "imports"
        "archive"
      ];
      keeps.ftp1 = [ "ftpd" ];
      reloads.ftp1 = [ "ftpd" ];
    }
    {
      what = "another log level";
      before = { };
      after = lib.genAttrs [ "ftpd" "authd" "relay" ] (_: {
        settings.log_level = "debug";
      });
      keeps = {
        ftp1 = [ "ftpd" ];
        lb1 = [ "ftp-relay" ];
        backend1 = [ "authd" ];
      };
      reloads = {
        ftp1 = [ "ftpd" ];
        lb1 = [ "ftp-relay" ];
        backend1 = [ "authd" ];
      };
    }
    {
      what = "one more user, with a ninth folder";
      before = folders 8;
      after = lib.recursiveUpdate (folders 9) { users.ann.hashedPasswordFile = "/run/secrets/ann"; };
      keeps = {
        ftp1 = [ "ftpd" ];
        backend1 = [ "authd" ];
      };
      reloads.backend1 = [ "authd" ];
    }
    {
      what = "another certificate";
      before = certificate "old";
      after = certificate "new";
      keeps.ftp1 = [ "ftpd" ];
      reloads.ftp1 = [ "ftpd" ];
    }
  ];

  # The text that decides about a restart. NixOS adds triggers to [Unit]; reload triggers do not count.
  restartedBy =
    unit:
    builtins.toJSON {
      inherit (unit)
        after
        before
        bindsTo
        conflicts
        environment
        partOf
        requires
        requisite
        restartTriggers
        serviceConfig
        upholds
        wants
        ;
      path = map toString unit.path;
      unitConfig = removeAttrs unit.unitConfig [
        "Description"
        "X-Reload-Triggers"
      ];
    };
  reloadedBy = unit: builtins.toJSON (map toString unit.reloadTriggers);

  problemsOf =
    change:
    lib.concatMap (
      host:
      let
        units =
          which: (sample.configuration (lib.recursiveUpdate { hostName = host; } which) [ ]).systemd.services;
        before = units change.before;
        after = units change.after;
        problems =
          names: isWrong: says:
          map (name: "${change.what}: ${host}: ${name}.service ${says}") (lib.filter isWrong names);
      in
      problems (change.keeps.${host} or [ ]) (
        name: restartedBy before.${name} != restartedBy after.${name}
      ) "would be restarted"
      ++ problems (change.reloads.${host} or [ ]) (
        name: reloadedBy before.${name} == reloadedBy after.${name}
      ) "would not be reloaded"
    ) (lib.attrNames change.keeps);
in
lib.concatMap problemsOf changes
