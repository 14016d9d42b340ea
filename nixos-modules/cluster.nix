# Values derived from the cluster's description: which host has which role, addresses and ports. Pure;
# all modules read it.
{ lib, config }:
let
  cfg = config.services.distributedFtp;
  inherit (cfg) cluster;
  inherit (lib) attrNames attrValues filterAttrs;

  addressesOf = members: lib.filter (a: a != null) (map (m: m.address) (attrValues members));
  nodeNames = attrNames cluster.nodes;
  partition = import ../nginx/ports.nix { inherit (cluster.passivePorts) from to; };

  units = {
    ms = 0;
    s = 1;
    m = 60;
    h = 3600;
    d = 86400;
  };
  # Converts a duration of the daemons' settings to whole seconds, rounded up.
  seconds =
    duration:
    let
      parts = builtins.match "([0-9]+)(ms|s|m|h|d)" duration;
      number = lib.toIntBase10 (lib.head parts);
    in
    if lib.last parts == "ms" then (number + 999) / 1000 else number * units.${lib.last parts};
in
rec {
  inherit seconds nodeNames;

  # The settings of the audit trail, which is below this directory if it is a file.
  auditSettings = directory: {
    audit_log = if cfg.audit.log == "file" then "${directory}/audit.log" else cfg.audit.log;
    audit_records = cfg.audit.records;
  };

  # How the log files of each unit are rotated.
  logRotation = {
    frequency = "weekly";
    rotate = 26;
    compress = true;
    delaycompress = true;
    missingok = true;
    notifempty = true;
  };

  # The settings of a daemon without those that it applies on SIGHUP.
  needingRestart =
    settings:
    removeAttrs settings [
      "log_level"
      "log_format"
    ];

  hostName = cfg.hostName;
  hasExplicitSlices = lib.any (node: node.passivePorts != null) (attrValues cluster.nodes);

  # True if the nodes lease blocks of the passive range in the registry. nginx needs to know the ports of each
  # node in advance.
  isLeased = !hasExplicitSlices && cluster.dataPath != "nginx";

  # [ { name; address; slice; } ], in the order that assigns the slices. The order is the same on every host.
  # `slice` is null if the nodes lease their blocks.
  nodes = lib.imap0 (position: name: {
    inherit name;
    inherit (cluster.nodes.${name}) address;
    slice =
      if isLeased then
        null
      else if cluster.nodes.${name}.passivePorts != null then
        cluster.nodes.${name}.passivePorts
      else
        partition position (lib.length nodeNames);
  }) nodeNames;

  nodeAddresses = addressesOf cluster.nodes;
  balancerAddresses = addressesOf cluster.balancers;
  authAddresses = addressesOf cluster.auth;
  ownBalancerAddresses = addressesOf ownBalancers;
  relayAddresses = lib.optionals usesRelay ownBalancerAddresses;
  # True if the gateway of the kernel's data path moves together with the floating address.
  movesGateway =
    isKernelPath
    && cluster.floatingAddress.address != null
    && cluster.dataGateway != null
    && cluster.dataGateway != cluster.floatingAddress.address
    && hostAt cluster.dataGateway == null;
  # The described host that makes the backups.
  backupAddresses = lib.optionals cfg.backup.enable (
    lib.filter (address: address != null) (
      map (members: members.${toString cfg.backup.host}.address or null) [
        cluster.nodes
        cluster.balancers
        cluster.auth
      ]
    )
  );
  monitoringAddresses = lib.optional (cluster.monitoring.address != null) cluster.monitoring.address;

  # True if the balancer's kernel forwards data connections.
  isKernelPath = cluster.dataPath == "kernel";
  # True if nginx carries control or data connections on the balancers.
  usesNginx = cluster.controlPath == "nginx" || cluster.dataPath == "nginx";
  # True if ftp-relay runs on the balancers. With the kernel's data path it tells the kernel the owners of the
  # ports, and carries what the kernel does not.
  usesRelay = cluster.controlPath == "relay" || cluster.dataPath != "nginx";
  # The balancers that these modules set up.
  ownBalancers = filterAttrs (_: balancer: !balancer.isExternal) cluster.balancers;

  isV6 = lib.hasInfix ":";
  isLoopback = address: lib.hasPrefix "127." address || address == "::1";
  bracketed = address: if lib.hasInfix ":" address then "[${address}]" else address;

  # A balancer on the node's own host connects to the node from a loopback address.
  trustedBalancers =
    map (
      address: if lib.hasInfix ":" address then "${address}/128" else "${address}/32"
    ) balancerAddresses
    ++ lib.optional (lib.any isLoopback nodeAddresses && cluster.balancers != { }) "127.0.0.0/8";

  isNode = cfg.enable && cluster.nodes ? ${hostName};
  isBalancer = cfg.enable && ownBalancers ? ${hostName};
  isRelay = isBalancer && usesRelay;
  isAuth = cfg.enable && cluster.auth ? ${hostName};
  isRedis = cfg.enable && cluster.redis.host == hostName;
  isStorage = cfg.enable && cluster.storage.type == "nfs" && cluster.storage.host == hostName;
  isMonitoring = cfg.enable && cluster.monitoring.host == hostName;
  isBackup = cfg.enable && cfg.backup.enable && cfg.backup.host == hostName;
  hasRole = isNode || isBalancer || isAuth || isRedis || isStorage || isMonitoring || isBackup;

  # Described hosts that have an address, to find a host by its address.
  hostAt =
    address:
    let
      members = [
        cluster.nodes
        cluster.balancers
        cluster.auth
      ];
      names = lib.concatMap (m: attrNames (filterAttrs (_: v: v.address == address) m)) members;
    in
    if address == null || names == [ ] then null else lib.head names;

  redisUrl =
    if cluster.redis.url != null then
      cluster.redis.url
    else if cluster.redis.address == null then
      ""
    else
      "${bracketed cluster.redis.address}:${toString cluster.redis.port}";
  # The settings by which each program finds Redis.
  redisSettings =
    if cluster.redis.sentinels != [ ] then
      {
        redis_sentinels = cluster.redis.sentinels;
        redis_sentinel_master = toString cluster.redis.sentinelMaster;
      }
    else if redisUrl == "" then
      { }
    else
      { redis_url = redisUrl; };
  # Events have a receiver.
  hasEvents = cfg.events.webhooks != { } || cfg.events.stream != null || cfg.events.commands != { };

  hasRedis =
    cluster.redis.url != null || cluster.redis.address != null || cluster.redis.sentinels != [ ];

  authUrls = lib.mapAttrsToList (_: auth: "http://${bracketed auth.address}:${toString auth.port}") (
    filterAttrs (_: auth: auth.address != null) cluster.auth
  );

  # Hosts that hold each secret. If only one host holds a secret, that host can generate it.
  users = {
    # Grafana encrypts values in its database with this key; no other host needs it.
    grafanaSecretKey = lib.optional (
      cluster.monitoring.grafana && cluster.monitoring.host != null
    ) cluster.monitoring.host;
    nodeToken = lib.unique (nodeNames ++ attrNames cluster.auth);
    adminToken = lib.unique (
      attrNames cluster.auth
      ++ lib.optional (cfg.backup.enable && cfg.backup.host != null) cfg.backup.host
    );
    redisPassword = lib.unique (
      nodeNames
      ++ attrNames cluster.auth
      ++ lib.optional (cluster.redis.host != null) cluster.redis.host
      # A Redis on loopback is only for its own host.
      ++ lib.optionals (usesRelay && !isLoopback (toString cluster.redis.address)) (
        attrNames ownBalancers
      )
    );
  };
  isGenerated =
    secret:
    cfg.secrets."${secret}File" or null == null
    && users.${secret} == [ hostName ]
    # An existing Redis already has its password.
    && (secret == "redisPassword" -> cluster.redis.host == hostName);
  # Path of the secret's file, or null.
  secretFile =
    secret:
    if isGenerated secret then
      "/var/lib/distributed-ftp-secrets/${secret}"
    else
      cfg.secrets."${secret}File";

  limits = {
    inherit (cfg.ftpd.settings)
      max_sessions
      max_transfers
      max_file_operations
      max_listing_memory
      max_relayed
      passive_block_ports
      ;
    drain = seconds cfg.ftpd.settings.drain_timeout;
    stall = seconds cfg.ftpd.settings.stall_timeout;
    idle = seconds cfg.ftpd.settings.idle_timeout;
  };

  hasCertificate = cluster.tls.certificateFile != null || cluster.tls.acmeHost != null;
  # Ports of clients' control connections.
  controlPorts = [
    cluster.controlPort
  ]
  ++ lib.optional (cluster.tls.implicitPort != null) cluster.tls.implicitPort;

  # The path of the storage on a node.
  root = cluster.storage.mountPoint;
  # The host that exports the storage does not mount it over the network.
  isLocalStorage = cluster.storage.type == "directory" || isStorage;
}
