# Assertions: cluster descriptions that cannot work, each with a message that says what to change.
{ config, lib, ... }:
let
  cfg = config.services.distributedFtp;
  cluster = import ./cluster.nix { inherit lib config; };
  description = cfg.cluster;
  inherit (description)
    passivePorts
    storage
    redis
    tls
    ;
  inherit (lib) attrNames filter;

  option = name: "services.distributedFtp.${name}";
  range = ports: "${toString ports.from}-${toString ports.to}";
  count = passivePorts.to - passivePorts.from + 1;
  blockPorts = cluster.limits.passive_block_ports;
  blocks = (count + blockPorts - 1) / blockPorts;
  nodeCount = lib.length cluster.nodeNames;

  withoutAddress = members: filter (name: members.${name}.address == null) (attrNames members);
  needsAddress =
    kind: members:
    map (name: {
      assertion = false;
      message = "${option "cluster.${kind}.${name}.address"} is not set: give the address by which the other hosts of the cluster know ${name}.";
    }) (withoutAddress members);

  explicit = filter (name: description.nodes.${name}.passivePorts != null) cluster.nodeNames;
  sliceOf = name: description.nodes.${name}.passivePorts;
  pairs = lib.concatMap (a: map (b: { inherit a b; }) (filter (b: a < b) explicit)) explicit;
  overlaps = one: other: one.from <= other.to && other.from <= one.to;

  balancersWithNodes = filter (name: description.nodes ? ${name}) (attrNames description.balancers);
  listensOnNode =
    name:
    let
      inherit (description.nodes.${name}) address;
      listen = description.balancers.${name}.listenAddresses;
      wildcard = if address != null && lib.hasInfix ":" address then "::" else "0.0.0.0";
    in
    address != null && (lib.elem wildcard listen || lib.elem address listen);

  # Ports that another role of the same host listens on.
  takenAt =
    name:
    lib.optional (description.auth ? ${name}) {
      what = "authd";
      inherit (description.auth.${name}) port;
    }
    ++ lib.optional (redis.host == name) {
      what = "Redis";
      inherit (redis) port;
    }
    ++ lib.optional (description.nodes ? ${name} && description.monitoring.address != null) {
      what = "the metrics";
      port = description.monitoring.metricsPort;
    }
    ++ lib.optional (cluster.usesRelay && cluster.ownBalancers ? ${name}) {
      what = "ftp-relay's metrics";
      port = description.monitoring.relayMetricsPort;
    };
  isPassive = port: passivePorts.from <= port && port <= passivePorts.to;
  clashes =
    name: filter ({ port, ... }: isPassive port || lib.elem port cluster.controlPorts) (takenAt name);

  gateway = description.dataGateway;
  # Nodes whose address is of another IP version than the gateway: the kernel cannot forward data to them.
  otherFamily = filter (
    name:
    let
      inherit (description.nodes.${name}) address;
    in
    address != null && gateway != null && cluster.isV6 address != cluster.isV6 gateway
  ) cluster.nodeNames;
  servesClients = name: description.balancers ? ${name} || description.nodes ? ${name};

  # Longest silence of a data connection, in seconds. A client may open it before it sends the transfer
  # command, so the idle limit counts too.
  longestSilence = lib.max cluster.limits.stall cluster.limits.idle;
  establishedTimeout =
    let
      inherit (config.boot.kernel) sysctl;
      set = sysctl."net.netfilter.nf_conntrack_tcp_timeout_established" or null;
    in
    if set == null then 432000 else lib.toInt (toString set);

  decidedForRelay = [
    "listen"
    "passive_port_min"
    "passive_port_max"
    "redis_url"
    "redis_sentinels"
    "redis_sentinel_master"
    "admin_listen"
    "nft_map"
    "control_port"
    "implicit_tls_port"
  ];
  decidedForAuthd = [
    "administrators_file"
    "audit_log"
    "audit_records"
    "console"
    "console_session"
  ];
  decided = [
    "cluster_nodes"
    "cluster_size"
    "node_name"
    "passive_slice"
    "passive_port_min"
    "passive_port_max"
    "nginx_data_path"
    "port"
    "external_address"
    "trusted_balancers"
    "root"
    "redis_url"
    "redis_sentinels"
    "redis_sentinel_master"
    "authd_urls"
    "standalone"
    "tls"
    "tls_certificates"
    "tls_data"
    "tls_keys"
    "implicit_tls_port"
    "user"
  ];
  floating = description.floatingAddress;
  # Balancers whose listeners do not take connections to the floating address.
  deafBalancers = filter (
    name:
    let
      listen = description.balancers.${name}.listenAddresses;
      wildcard = if cluster.isV6 floating.address then "::" else "0.0.0.0";
    in
    !(lib.elem wildcard listen || lib.elem floating.address listen)
  ) (attrNames cluster.ownBalancers);
  # VRRP has one IP version: that of the balancers' own addresses and of all that move.
  otherVersions = lib.unique (
    filter (address: cluster.isV6 address != cluster.isV6 floating.address) (
      cluster.ownBalancerAddresses ++ lib.optional cluster.movesGateway gateway
    )
  );

  # Directories that PrivateTmp and ProtectHome replace for the backup.
  hiddenFromBackup = filter (hidden: lib.hasPrefix "${hidden}/" "${cfg.backup.directory}/") [
    "/home"
    "/root"
    "/run/user"
    "/tmp"
    "/var/tmp"
  ];
  ownFileSystem = config.fileSystems.${storage.mountPoint} or null;
  isNetwork = lib.elem storage.type [
    "nfs"
    "cephfs"
    "glusterfs"
  ];
in
{
  config.assertions = lib.mkIf cfg.enable (
    needsAddress "nodes" description.nodes
    ++ needsAddress "balancers" description.balancers
    ++ needsAddress "auth" description.auth
    ++ map (name: {
      assertion = description.nodes.${name}.address != null;
      message = "${option "openFirewall"} cannot let in the node ${name}, whose address is not set: set ${option "cluster.nodes.${name}.address"}.";
    }) (lib.optionals cfg.openFirewall cluster.nodeNames)
    ++ map (name: {
      assertion = sliceOf name == null || (sliceOf name).from <= (sliceOf name).to;
      message = "${option "cluster.nodes.${name}.passivePorts"} is ${range (sliceOf name)}, in reverse order: swap `from` and `to`.";
    }) explicit
    ++ map (name: {
      assertion = passivePorts.from <= (sliceOf name).from && (sliceOf name).to <= passivePorts.to;
      message = "${option "cluster.nodes.${name}.passivePorts"}, ${range (sliceOf name)}, is not within ${option "cluster.passivePorts"}, ${range passivePorts}, which are the only ports that the balancers forward: widen that range.";
    }) explicit
    ++ map (pair: {
      assertion = !(overlaps (sliceOf pair.a) (sliceOf pair.b));
      message = "${option "cluster.nodes"}: the passivePorts of ${pair.a}, ${range (sliceOf pair.a)}, and of ${pair.b}, ${range (sliceOf pair.b)}, overlap: give each port to one node.";
    }) pairs
    ++ map (name: {
      assertion = !(listensOnNode name);
      message = "${option "cluster.balancers.${name}.listenAddresses"} takes port ${toString description.controlPort} of the node on the same host, ${
        toString description.nodes.${name}.address
      }: name the addresses for clients, or give the node another address, such as 127.0.0.2.";
    }) balancersWithNodes
    ++ map (name: {
      assertion = !cluster.isKernelPath;
      message = "${option "cluster.dataPath"} is \"kernel\", and ${name} is a balancer and a node: data that the kernel forwards must travel between two hosts. Use \"nginx\", or put the node and the balancer on separate hosts.";
    }) balancersWithNodes
    ++ map (name: {
      assertion = !cluster.isKernelPath;
      message = "${option "cluster.dataGateway"}, ${toString gateway}, is no gateway for the node ${name}, ${
        toString description.nodes.${name}.address
      }: one is IPv4, the other IPv6. Use the same IP version for both; clients may use either version.";
    }) otherFamily
    ++ map (name: {
      assertion = !(servesClients name) || clashes name == [ ];
      message = "${option "cluster"}: on ${name} the control port ${toString description.controlPort} and the passive ports ${range passivePorts} overlap ${
        lib.concatMapStringsSep " and " ({ what, port }: "port ${toString port} of ${what}") (clashes name)
      }: move one of them.";
    }) (attrNames (description.nodes // description.balancers))
    ++ map (name: {
      assertion = cfg.users.${name}.hashedPasswordFile != null;
      message = "${option "users.${name}.hashedPasswordFile"} is not set, so ${name} could never log in: name a file that holds the output of `authd hash-password`.";
    }) (attrNames cfg.users)
    ++ map (key: {
      assertion = !(cfg.ftpd.settings ? ${key});
      message = "${option "ftpd.settings.${key}"} is set by ${option "cluster"}: set it there.";
    }) decided
    ++ map (key: {
      assertion = !(cfg.relay.settings ? ${key});
      message = "${option "relay.settings.${key}"} is set by ${option "cluster"}: set it there.";
    }) decidedForRelay
    ++ map (key: {
      assertion = !(cfg.authd.settings ? ${key});
      message = "${option "authd.settings.${key}"} is set by ${option "administrators"}, ${option "audit"} or ${option "console"}: set it there.";
    }) decidedForAuthd
    ++ map (key: {
      assertion = !(cfg.ftpd.settings ? ${key});
      message = "${option "ftpd.settings.${key}"} is set by ${option "audit"}: set it there.";
    }) (attrNames (cluster.auditSettings ""))
    ++ map (name: {
      assertion = !(cfg.events.commands ? ${name}) && !(name == "stream" && cfg.events.stream != null);
      message = "${option "events.webhooks.${name}"} has the name of another receiver of events: choose another name.";
    }) (attrNames cfg.events.webhooks)
    ++ map (name: {
      assertion = name != "admin";
      message = "${option "administrators.admin"} is the administrator of ${option "secrets.adminTokenFile"}: choose another name.";
    }) (attrNames cfg.administrators)
    ++ lib.optionals (floating.address != null) [
      {
        assertion = floating.interface != null;
        message = "${option "cluster.floatingAddress.interface"} is not set: name the balancers' network interface for ${floating.address}.";
      }
      {
        assertion = lib.length (attrNames cluster.ownBalancers) > 1;
        message = "${option "cluster.floatingAddress"} needs at least two balancers that these modules set up: add one to ${option "cluster.balancers"}, or remove the floating address.";
      }
      {
        assertion = cluster.hostAt floating.address == null;
        message = "${option "cluster.floatingAddress.address"} is ${floating.address}, the address of ${toString (cluster.hostAt floating.address)}: choose an address that no host has.";
      }
      {
        assertion = otherVersions == [ ];
        message = "${option "cluster.floatingAddress.address"} is ${floating.address}, and ${toString otherVersions} is of another IP version: VRRP needs one version for the balancers' addresses and those that move.";
      }
      {
        assertion = deafBalancers == [ ];
        message = "${option "cluster.floatingAddress.address"}: ${toString deafBalancers} does not listen on ${floating.address}: add it to the listenAddresses of ${toString deafBalancers}.";
      }
    ]
    ++ [
      {
        assertion = !(cluster.hasEvents && cfg.ftpd.settings ? events_file);
        message = "${option "ftpd.settings.events_file"} is set by ${option "events"}: set it there.";
      }
      {
        assertion = !(cfg.events.commands ? stream && cfg.events.stream != null);
        message = "${option "events.commands.stream"} has the name of another receiver of events: choose another name.";
      }
      {
        assertion = !cfg.openFirewall || config.networking.firewall.backend != "firewalld";
        message = "${option "openFirewall"} does not support firewalld, the firewall of this host, so the ports between the hosts of the cluster would stay closed: turn it off and open the ports in a zone of firewalld, or set networking.firewall.backend to \"nftables\" or \"iptables\".";
      }
      {
        assertion = cluster.hasRole;
        message = "${option "cluster"} gives no role to this host, ${cluster.hostName}: add it to the nodes, balancers or another role, or set ${option "hostName"}.";
      }
      {
        assertion = description.nodes != { };
        message = "${option "cluster.nodes"} is empty: a cluster needs at least one node.";
      }
      {
        assertion = passivePorts.from <= passivePorts.to;
        message = "${option "cluster.passivePorts"} is ${range passivePorts}, in reverse order: swap `from` and `to`.";
      }
      {
        assertion =
          explicit != [ ] || cluster.isLeased || passivePorts.from > passivePorts.to || count >= nodeCount;
        message = "${option "cluster.passivePorts"}, ${range passivePorts}, has fewer ports than there are nodes (${toString nodeCount}): widen it, each node needs at least one.";
      }
      {
        assertion = !cluster.isLeased || passivePorts.from > passivePorts.to || blocks >= nodeCount;
        message = "${option "cluster.passivePorts"}, ${range passivePorts}, has fewer blocks of ${toString blockPorts} ports than there are nodes (${toString nodeCount}), and each node needs at least one block: widen the range, or lower ${option "ftpd.settings.passive_block_ports"}.";
      }
      {
        assertion = explicit == [ ] || lib.length explicit == lib.length cluster.nodeNames;
        message = "${option "cluster.nodes"}: passivePorts is set for ${lib.concatStringsSep ", " explicit} only: set it for all nodes or for none.";
      }
      {
        assertion = !(lib.any isPassive cluster.controlPorts);
        message = "${option "cluster"}: a control port, ${
          lib.concatMapStringsSep " or " toString cluster.controlPorts
        }, lies within ${option "cluster.passivePorts"}, ${range passivePorts}: move one of them.";
      }
      {
        assertion = !(description.controlPath == "relay" && description.dataPath == "nginx");
        message = "${option "cluster.controlPath"} is \"relay\" and ${option "cluster.dataPath"} is \"nginx\": ftp-relay can carry the data connections too, and keeps what nginx breaks. Set dataPath to \"relay\" or \"kernel\".";
      }
      {
        assertion =
          description.nodesDns.name == null
          || (description.nodesDns.resolvers != [ ] && description.controlPath == "nginx");
        message = "${option "cluster.nodesDns.name"} is for nginx, which needs ${option "cluster.nodesDns.resolvers"} and ${option "cluster.controlPath"} = \"nginx\": set both, or remove the name.";
      }
      {
        assertion =
          !(cluster.isRelay && redis.host != cluster.hostName)
          || redis.address == null
          || !(cluster.isLoopback redis.address);
        message = "${option "cluster.redis.address"} is ${toString redis.address}, which ftp-relay on ${cluster.hostName} cannot reach: set an address that the balancers reach.";
      }
      {
        assertion = !cluster.isKernelPath || description.balancers != { };
        message = "${option "cluster.dataPath"} is \"kernel\", but the cluster has no balancer: name one in ${option "cluster.balancers"}.";
      }
      {
        assertion =
          !cluster.isKernelPath || lib.length (attrNames description.balancers) < 2 || gateway != null;
        message = "${option "cluster.dataGateway"} is not set, and there are several balancers: the nodes must send data back through the balancer that clients reach. Set an address that only this balancer has (${option "cluster.floatingAddress"} moves it), or use \"nginx\".";
      }
      {
        assertion = !(cluster.isBalancer && cluster.isKernelPath) || establishedTimeout > longestSilence;
        message = "boot.kernel.sysctl.\"net.netfilter.nf_conntrack_tcp_timeout_established\" is ${toString establishedTimeout} s: the kernel of a balancer would forget a silent data connection before the node ends it. Make it longer than ${option "ftpd.settings"}.stall_timeout and idle_timeout (${toString longestSilence} s), or leave it at the kernel's five days.";
      }
      {
        assertion = tls.implicitPort != description.controlPort;
        message = "${option "cluster.tls.implicitPort"} is the control port, ${toString description.controlPort}, where connections begin without TLS: choose another port, such as 990.";
      }
      {
        assertion = cluster.hasCertificate || !(tls.required || tls.implicitPort != null);
        message = "${option "cluster.tls"} needs a certificate: set `certificateFile` and `keyFile`, or `acmeHost`.";
      }
      {
        assertion = (tls.certificateFile == null) == (tls.keyFile == null);
        message = "${option "cluster.tls"}: only one of certificate and key is set: set both `certificateFile` and `keyFile`.";
      }
      {
        assertion = tls.certificateFile == null || tls.acmeHost == null;
        message = "${option "cluster.tls"}: two certificates are named: set either the files or `acmeHost`.";
      }
      {
        assertion = description.auth != { };
        message = "${option "cluster.auth"} is empty: the nodes need an authd to verify logins.";
      }
      {
        assertion = cluster.hasRedis;
        message = "${option "cluster.redis.address"} is not set: name the host that runs Redis, or an existing one with ${option "cluster.redis.url"}.";
      }
      {
        assertion = redis.sentinels == [ ] || (redis.address == null && redis.url == null);
        message = "${option "cluster.redis.sentinels"} tell where Redis is: remove ${option "cluster.redis.address"} and ${option "cluster.redis.url"}, or the sentinels.";
      }
      {
        assertion = (redis.sentinels == [ ]) == (redis.sentinelMaster == null);
        message = "${option "cluster.redis.sentinels"} and ${option "cluster.redis.sentinelMaster"} belong together: set both, or neither.";
      }
      {
        assertion = !(cluster.isNode || cluster.isAuth) || cluster.secretFile "nodeToken" != null;
        message = "${option "secrets.nodeTokenFile"} is not set, and authd and the nodes are on several hosts: put the same random text into a file on each of these hosts and name the file here.";
      }
      {
        assertion =
          cfg.secrets.adminTokenFile == null || cfg.secrets.adminTokenFile != cfg.secrets.nodeTokenFile;
        message = "${option "secrets.adminTokenFile"} is the same file as nodeTokenFile, so every node would have an administrator's rights: use two secrets.";
      }
      {
        assertion = !cluster.isBackup || cluster.secretFile "adminToken" != null;
        message = "${option "secrets.adminTokenFile"} is not set, and ${cluster.hostName}, which makes the backups, needs the token: put the same token into a file on this host and on each host of authd, and name the file here.";
      }
      {
        assertion = !cfg.backup.enable || hiddenFromBackup == [ ];
        message = "${option "backup.directory"} is ${cfg.backup.directory}, but the unit's sandbox hides ${toString hiddenFromBackup}: choose another directory, such as /var/lib/distributed-ftp-backup.";
      }
      {
        assertion =
          redis.host == null
          || redis.address == null
          || cluster.isLoopback redis.address
          || cfg.secrets.redisPasswordFile != null
          || (cluster.isRedis && cluster.isGenerated "redisPassword");
        message = "${option "secrets.redisPasswordFile"} is not set, and Redis can be reached from outside at ${toString redis.address}: put the same password into a file on each host that uses Redis and name the file here.";
      }
      {
        assertion = redis.host == null || redis.address != null;
        message = "${option "cluster.redis.address"} is not set, but ${option "cluster.redis.host"} runs Redis: set the address where it listens.";
      }
      {
        assertion = storage.type != "nfs" || (storage.server != null && storage.export != null);
        message = "${option "cluster.storage"}: nfs needs `server` and `export`.";
      }
      {
        assertion = !isNetwork || storage.type == "nfs" || storage.device != null;
        message = "${option "cluster.storage.device"} is not set: set the device that ${storage.type} mounts.";
      }
      {
        assertion = storage.type == "nfs" || storage.host == null;
        message = "${option "cluster.storage.host"} is for nfs: this module makes no ${storage.type} server.";
      }
      {
        assertion =
          storage.type != "nfs"
          || storage.server == null
          || storage.export == null
          || storage.device == "${cluster.bracketed storage.server}:${storage.export}";
        message = "${option "cluster.storage"}: nodes and server disagree: the nodes mount ${toString storage.device}, the server exports ${toString storage.server}:${toString storage.export}. Remove `device`, or set `server` and `export` to match it.";
      }
      {
        assertion =
          storage.type != "nfs"
          || storage.host == null
          || !(lib.elem storage.host (
            attrNames (description.nodes // description.balancers // description.auth)
          ))
          || storage.server == null
          || builtins.match "[0-9.:a-f]+" storage.server == null
          || cluster.hostAt storage.server == null
          || lib.elem storage.server (
            map (members: members.${storage.host}.address or null) [
              description.nodes
              description.balancers
              description.auth
            ]
          );
        message = "${option "cluster.storage"}: nodes and server disagree: the nodes mount from ${toString storage.server}, which is not an address of ${toString storage.host}, the server: correct `server` or `host`.";
      }
      {
        assertion = storage.type != "directory" || lib.length cluster.nodeNames <= 1;
        message = "${option "cluster.storage.type"} is a directory, but there are ${toString (lib.length cluster.nodeNames)} nodes, and each would have its own files: use nfs, cephfs or glusterfs, or none if something else shares the directory.";
      }
      {
        assertion = !(cluster.isNode && isNetwork) || ownFileSystem == null;
        message = "fileSystems.\"${storage.mountPoint}\" and ${option "cluster.storage"} both mount a file system there: set ${option "cluster.storage.type"} to \"none\", or remove the first.";
      }
    ]
  );
}
