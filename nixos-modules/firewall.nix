# The ports that `openFirewall` opens, and for which addresses. All others stay closed.
{ config, lib, ... }:
let
  cfg = config.services.distributedFtp;
  cluster = import ./cluster.nix { inherit lib config; };
  description = cfg.cluster;
  hasBalancers = description.balancers != { };

  # A rule opens TCP ports and ranges ("50000-50099") for some addresses, or for all (null).
  rule = from: ports: { inherit from ports; };
  range = ports: "${toString ports.from}-${toString ports.to}";
  isV6 = lib.hasInfix ":";

  rules =
    lib.optional cluster.isBalancer (
      rule null (map toString cluster.controlPorts ++ [ (range description.passivePorts) ])
    )
    ++ lib.optional cluster.isRelay (
      rule cluster.monitoringAddresses [ (toString description.monitoring.relayMetricsPort) ]
    )
    ++ lib.optionals cluster.isNode [
      (rule (if hasBalancers then cluster.balancerAddresses else null) (
        map toString cluster.controlPorts
      ))
      # A node listens on the whole range: the other nodes carry connections to it. The balancer's kernel
      # keeps the clients' addresses.
      (rule (
        if hasBalancers && !cluster.isKernelPath then
          cluster.balancerAddresses ++ cluster.nodeAddresses
        else
          null
      ) [ (range description.passivePorts) ])
      (rule cluster.monitoringAddresses [ (toString description.monitoring.metricsPort) ])
    ]
    ++ lib.optional cluster.isAuth (
      rule
        (
          cluster.nodeAddresses
          ++ cluster.monitoringAddresses
          ++ cluster.backupAddresses
          ++ cfg.console.allowFrom
        )
        [
          (toString description.auth.${cluster.hostName}.port)
        ]
    )
    ++ lib.optional cluster.isRedis (
      rule (cluster.nodeAddresses ++ cluster.authAddresses ++ cluster.relayAddresses) [
        (toString description.redis.port)
      ]
    )
    # NFS 4 needs this port only.
    ++ lib.optional cluster.isStorage (rule cluster.nodeAddresses [ "2049" ]);

  forEverybody = lib.concatMap (r: lib.optionals (r.from == null) r.ports) rules;
  forSome = lib.filter (r: r.from != null && r.from != [ ]) rules;

  families =
    r:
    lib.filter (f: f.addresses != [ ]) [
      {
        iptables = "iptables";
        nft = "ip";
        addresses = lib.filter (a: !isV6 a) r.from;
      }
      {
        iptables = "ip6tables";
        nft = "ip6";
        addresses = lib.filter isV6 r.from;
      }
    ];
  # VRRP is IP protocol 112. Only the other balancers may move the floating address.
  vrrpPeers = lib.optionals (cluster.isBalancer && description.floatingAddress.address != null) (
    lib.remove description.balancers.${cluster.hostName}.address cluster.ownBalancerAddresses
  );
  vrrpFamilies = families (rule vrrpPeers [ ]);

  render = text: lib.concatMapStrings (r: lib.concatMapStrings (text r) (families r)) forSome;

  parse =
    port:
    let
      ends = map lib.toIntBase10 (lib.splitString "-" port);
    in
    {
      from = lib.head ends;
      to = lib.last ends;
    };
in
{
  config.networking.firewall = lib.mkIf (cfg.enable && cfg.openFirewall) {
    allowedTCPPortRanges = map parse forEverybody;
    extraCommands = lib.mkIf (!config.networking.nftables.enable) (
      render (
        r: f:
        "${f.iptables} -A nixos-fw -p tcp -s ${lib.concatStringsSep "," (lib.unique f.addresses)} "
        + "-m multiport --dports ${
          lib.replaceStrings [ "-" ] [ ":" ] (lib.concatStringsSep "," r.ports)
        } -j nixos-fw-accept\n"
      )
      + lib.concatMapStrings (
        f:
        "${f.iptables} -A nixos-fw -p 112 -s ${lib.concatStringsSep "," f.addresses} -j nixos-fw-accept\n"
      ) vrrpFamilies
    );
    extraInputRules = lib.mkIf config.networking.nftables.enable (
      render (
        r: f:
        "${f.nft} saddr { ${lib.concatStringsSep ", " (lib.unique f.addresses)} } "
        + "tcp dport { ${lib.concatStringsSep ", " r.ports} } accept\n"
      )
      + lib.concatMapStrings (
        f: "${f.nft} saddr { ${lib.concatStringsSep ", " f.addresses} } meta l4proto 112 accept\n"
      ) vrrpFamilies
    );
  };
}
