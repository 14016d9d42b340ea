# The kernel data path: the balancer's rules, and the nodes' routes back through the balancer. The rules
# and scripts themselves are in ../nginx/kernel. Where nodes lease their blocks, relay.nix keeps the owners of
# the ports current in the rules.
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

  # Sandbox of programs that only configure the network.
  sandbox = import ./hardening.nix // {
    CapabilityBoundingSet = "CAP_NET_ADMIN";
    RestrictAddressFamilies = [
      "AF_INET"
      "AF_INET6"
      "AF_NETLINK"
    ];
    # The capability has an effect only in the host's own user namespace.
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
      inherit (description) passivePorts;
      # Assertions reject the others.
      nodes = lib.filter (
        node: node.address != null && (node.slice == null || node.slice.from <= node.slice.to)
      ) cluster.nodes;
    }
  );
  nft = lib.getExe' pkgs.nftables "nft";
  forward = on: "${lib.getExe' pkgs.procps "sysctl"} -qw ${forwarding}=${on}";

  # A separate nftables table, independent of the host's firewall.
  table = {
    wantedBy = [ "multi-user.target" ];
    # Like a firewall, it is loaded before the network is up.
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
    # Some firewalls flush all tables, including this one; load it again after them.
    partOf = [ "nftables.service" ];
    unitConfig = {
      DefaultDependencies = false;
      ReloadPropagatedFrom = "nftables.service";
    };
    # New rules replace the old ones in one step, and transfers go on.
    reloadIfChanged = true;
    serviceConfig = sandbox // {
      Type = "oneshot";
      RemainAfterExit = true;
      # The unit starts before /tmp is mounted.
      PrivateTmp = false;
    };
  };

  ownNode = lib.findFirst (node: node.name == cluster.hostName) null cluster.nodes;
  replies = "${pkgs.runtimeShell} ${../nginx/kernel/replies.sh}";
  # Below /etc, at a fixed path, so that a new node does not restart the unit.
  peers = "distributed-ftp/peers";
  ways = toString [
    ownNode.address
    "${toString description.passivePorts.from}-${toString description.passivePorts.to}"
    description.dataGateway
    "/etc/${peers}"
  ];
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
            # Also after a failed start: without the rules the host forwards nothing.
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
        # Set here too, because NixOS would overwrite the unit's value with its own default.
        ${forwarding} = true;
        # The kernel keeps an entry (320 bytes) for each data connection until two minutes after its end.
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
        # Keeps the time between stopping the old unit and starting the new one short.
        stopIfChanged = false;
        # Waits for the network.
        startLimitIntervalSec = 0;
        reloadTriggers = [ config.environment.etc.${peers}.source ];
        path = [ pkgs.iproute2 ];
        serviceConfig = sandbox // {
          Type = "exec";
          ExecStartPre = "${replies} add ${ways}";
          ExecStart = "${replies} keep ${ways}";
          ExecReload = "${replies} add ${ways}";
          ExecStopPost = "${replies} remove ${ownNode.address}";
          Restart = "always";
          RestartSec = 2;
        };
      };

      # NixOS' reverse path filter ignores routing rules for ports: a node whose other traffic uses another
      # interface would drop packets that come through the balancer.
      networking.firewall.checkReversePath = lib.mkDefault "loose";
      # systemd-networkd removes foreign rules and routes when it starts.
      environment.etc = {
        "systemd/networkd.conf.d/distributed-ftp.conf".text = ''
          [Network]
          ManageForeignRoutingPolicyRules=no
          ManageForeignRoutes=no
        '';
        ${peers}.text = lib.concatLines (cluster.balancerAddresses ++ cluster.nodeAddresses);
      };
    })
  ];
}
