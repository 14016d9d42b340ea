# The kernel's part in carrying data: the balancer's rules, and on the nodes the way back through it.
# What runs is in ../nginx/kernel.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.distributedFtp;
  cluster = import ./cluster.nix { inherit lib config; };
  description = cfg.cluster;
  inherit (cluster) isKernelPath;
  forwarding =
    if cluster.isV6 (toString description.dataGateway) then
      "net.ipv6.conf.all.forwarding"
    else
      "net.ipv4.conf.all.forwarding";

  # For programs that set the network up and do nothing else.
  sandbox = import ./hardening.nix // {
    CapabilityBoundingSet = "CAP_NET_ADMIN";
    RestrictAddressFamilies = [
      "AF_INET"
      "AF_INET6"
      "AF_NETLINK"
    ];
    # The capability counts in the host's own user namespace only.
    PrivateUsers = false;
  };

  ownBalancer = description.balancers.${cluster.hostName};
  rules = import ../nginx/kernel/rules.nix { inherit lib; };
  urgentData = pkgs.writeText "ftp-urgent-data.nft" (
    rules.urgentData { inherit (cluster) controlPorts; }
  );
  dataPath = pkgs.writeText "ftp-data-path.nft" (
    rules.dataPath {
      inherit (ownBalancer) listenAddresses isRouter;
      # Others are what assertions are about.
      nodes = lib.filter (node: node.address != null && node.slice.from <= node.slice.to) cluster.nodes;
    }
  );
  nft = lib.getExe' pkgs.nftables "nft";
  forward = on: "${lib.getExe' pkgs.procps "sysctl"} -qw ${forwarding}=${on}";

  # A table of nftables of our own, whichever firewall the host has.
  table = {
    wantedBy = [ "multi-user.target" ];
    # Like a firewall: before there is a network.
    wants = [ "network-pre.target" ];
    before = [
      "network-pre.target"
      "shutdown.target"
    ];
    after = [
      "systemd-modules-load.service"
      "systemd-sysctl.service"
      "nftables.service"
    ];
    conflicts = [ "shutdown.target" ];
    # A firewall that flushes all tables, also those of others, takes this one with it.
    partOf = [ "nftables.service" ];
    unitConfig = {
      DefaultDependencies = false;
      ReloadPropagatedFrom = "nftables.service";
    };
    # New rules take the place of the old ones at once, and transfers go on.
    reloadIfChanged = true;
    serviceConfig = sandbox // {
      Type = "oneshot";
      RemainAfterExit = true;
      # It starts before there is a /tmp.
      PrivateTmp = false;
    };
  };

  ownNode = lib.findFirst (node: node.name == cluster.hostName) null cluster.nodes;
  replies = "${pkgs.runtimeShell} ${../nginx/kernel/replies.sh}";
  ways = toString (
    [
      ownNode.address
      "${toString ownNode.slice.from}-${toString ownNode.slice.to}"
      description.dataGateway
    ]
    ++ lib.filter (
      address: cluster.isV6 address == cluster.isV6 ownNode.address
    ) cluster.balancerAddresses
  );
in
{
  imports = [ ./common.nix ];

  config = lib.mkMerge [
    (lib.mkIf cluster.isBalancer {
      systemd.services.ftp-urgent-data = lib.mkMerge [
        table
        {
          description = "Distributed FTP: clients' urgent data reaches nginx";
          serviceConfig = {
            ExecStart = "${nft} -f ${urgentData}";
            ExecReload = "${nft} -f ${urgentData}";
            ExecStopPost = "-${nft} delete table inet ftp_urgent_data";
          };
        }
      ];
    })

    (lib.mkIf (cluster.isBalancer && isKernelPath) {
      systemd.services.ftp-data-path = lib.mkMerge [
        table
        {
          description = "Distributed FTP: data connections through the kernel";
          serviceConfig = rec {
            ExecStart = [
              "${nft} -f ${dataPath}"
              (forward "1")
            ];
            ExecReload = ExecStart;
            # Also when it could not start: without the rules the host forwards nothing.
            ExecStopPost = lib.optional (!ownBalancer.isRouter) (forward "0") ++ [
              "-${nft} delete table inet ftp_data_path"
            ];
            ProcSubset = lib.mkForce "all";
            ProtectKernelTunables = lib.mkForce false;
          };
        }
      ];

      boot.kernelModules = [ "nf_conntrack" ];
      boot.kernel.sysctl = {
        # Not by the unit alone: NixOS would write its own default over it.
        ${forwarding} = true;
        # Every data connection counts for two minutes after its end. An entry has 320 bytes.
        "net.netfilter.nf_conntrack_max" = lib.mkDefault 524288;
      };
    })

    (lib.mkIf (cluster.isNode && isKernelPath) {
      systemd.services.ftp-node-replies = {
        description = "Distributed FTP: the way of data back through the balancer";
        wantedBy = [ "multi-user.target" ];
        wants = [ "network-online.target" ];
        after = [ "network-online.target" ];
        before = [ "ftpd.service" ];
        # Stopped only for the moment between the old one and the new one.
        stopIfChanged = false;
        # A network that comes late is waited for.
        startLimitIntervalSec = 0;
        path = [ pkgs.iproute2 ];
        serviceConfig = sandbox // {
          Type = "exec";
          ExecStartPre = "${replies} add ${ways}";
          ExecStart = "${replies} keep ${ways}";
          ExecStopPost = "${replies} remove ${ownNode.address}";
          Restart = "always";
          RestartSec = 2;
        };
      };

      # NixOS' check of the way back does not know of rules for ports: a node whose other traffic takes
      # another interface would drop what comes through the balancer.
      networking.firewall.checkReversePath = lib.mkDefault "loose";
      # systemd-networkd, when it starts, takes away rules and routes that are not its own.
      environment.etc."systemd/networkd.conf.d/distributed-ftp.conf".text = ''
        [Network]
        ManageForeignRoutingPolicyRules=no
        ManageForeignRoutes=no
      '';
    })
  ];
}
