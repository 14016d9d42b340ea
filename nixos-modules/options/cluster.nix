# services.distributedFtp.cluster: which hosts there are, and what each does.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  inherit (import ./types.nix { inherit lib; }) address portRange redisUrl;
  cfg = config.services.distributedFtp.cluster;
  cluster = import ../cluster.nix { inherit lib config; };

  addressOption =
    description:
    mkOption {
      type = types.nullOr address;
      default = null;
      example = "10.0.0.11";
      inherit description;
    };

  node = types.submodule {
    options = {
      address = addressOption "Where the node listens, for the balancers: an address of this host.";
      passivePorts = mkOption {
        type = types.nullOr portRange;
        default = null;
        example = {
          from = 50000;
          to = 50099;
        };
        description = ''
          The node's own slice of the cluster's passive ports. Set for all nodes or for none; without
          it each has an equal part, in the order of their names. With it a node can be added and the
          slices of the others stay: they need no restart.
        '';
      };
    };
  };

  balancer = types.submodule {
    options = {
      address = addressOption "Address from which the balancer connects to the nodes.";
      listenAddresses = mkOption {
        type = types.nonEmptyListOf address;
        default = [ "0.0.0.0" ] ++ lib.optional config.networking.enableIPv6 "::";
        defaultText = lib.literalMD "all addresses";
        example = [ "203.0.113.10" ];
        description = "Addresses that clients connect to.";
      };
      isRouter = mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = ''
          Whether the host also forwards what has nothing to do with FTP (containers, a VPN). With
          `dataPath = "kernel"` it must forward data connections, and drops all else that it would
          forward; with this it leaves all else to the host's other rules.
        '';
      };
    };
  };

  auth = types.submodule {
    options = {
      address = addressOption "Where authd listens, for the nodes.";
      port = mkOption {
        type = types.port;
        default = 5160;
        example = 5160;
        description = "Port of authd.";
      };
    };
  };

  hosts =
    type: description: example:
    mkOption {
      type = types.attrsOf type;
      default = { };
      inherit description;
      example = lib.literalExpression example;
    };
in
{
  options.services.distributedFtp.cluster = {
    externalAddress = mkOption {
      type = types.nullOr address;
      default = null;
      example = "203.0.113.10";
      description = ''
        The address that clients are told for data connections. Needed where the balancer is behind
        address translation; without it a client is told the address that it connected to.
      '';
    };

    controlPort = mkOption {
      type = types.port;
      default = 21;
      example = 2121;
      description = "The control port, at the balancers and at the nodes.";
    };

    passivePorts = mkOption {
      type = portRange;
      default = {
        from = 50000;
        to = 50099;
      };
      example = {
        from = 50000;
        to = 50299;
      };
      description = ''
        Ports of the data connections of the whole cluster. A port serves any number of clients with
        different addresses at once; clients behind one address need one port each.
      '';
    };

    dataPath = mkOption {
      type = types.enum [
        "nginx"
        "kernel"
      ];
      default = "nginx";
      example = "kernel";
      description = ''
        What carries data connections through the balancer: nginx, as it carries control connections,
        or the kernel (nftables), which costs a fraction of it. For `kernel` the nodes are hosts of
        their own in one network with the balancer, which becomes their gateway for the passive
        ports: [how it works and what it needs](../nginx/kernel/README.md).
      '';
    };

    dataGateway = mkOption {
      type = types.nullOr address;
      default =
        let
          balancers = lib.attrValues cfg.balancers;
        in
        if lib.length balancers == 1 then (lib.head balancers).address else null;
      defaultText = lib.literalMD "the address of the balancer, if there is one only";
      example = "10.0.0.1";
      description = ''
        With `dataPath = "kernel"`: where the nodes send what belongs to data connections. With several
        balancers, an address in the nodes' network that only the one has which clients reach, such as
        keepalived moves together with the public one.
      '';
    };

    nodes =
      hosts node
        "Hosts that run an FTP node, by name. Their order by name decides the slices of the passive ports."
        ''{ ftp1.address = "10.0.0.11"; ftp2.address = "10.0.0.12"; }'';

    balancers =
      hosts balancer
        "Hosts that run the balancer (nginx), by name. Those that run another one are named here too: the nodes believe no one else's PROXY header."
        ''{ lb1.address = "10.0.0.10"; }'';

    auth =
      hosts auth "Hosts that run authd, by name. The nodes ask them in this order."
        ''{ backend1.address = "10.0.0.20"; }'';

    redis = {
      address = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "10.0.0.20";
        description = "Address of the Redis that holds sessions, nodes, limits and API users.";
      };
      port = mkOption {
        type = types.port;
        default = 6379;
        example = 6379;
        description = "Port of that Redis.";
      };
      url = mkOption {
        type = types.nullOr redisUrl;
        default = null;
        example = "redis://redis.example.org:6379/2";
        description = ''
          A Redis that exists already, in place of `address` and `port`. The password goes into
          `secrets.redisPasswordFile`. With `unix:///PATH` each host has its own socket at that path.
        '';
      };
      host = mkOption {
        type = types.nullOr types.str;
        default = if cfg.redis.url != null then null else cluster.hostAt cfg.redis.address;
        defaultText = lib.literalMD "the host above that has `redis.address`; none with `redis.url`";
        example = "redis1";
        description = "Name of the host that runs Redis; null if it exists already.";
      };
    };

    monitoring = {
      host = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "monitor1";
        description = "Name of a host that gets Prometheus with scrape settings and alert rules for the cluster.";
      };
      address = addressOption ''
        Address from which Prometheus comes, whether it is `monitoring.host` or another. With it the
        nodes serve their metrics on their own address; without it, on loopback.
      '';
      metricsPort = mkOption {
        type = types.port;
        default = 9121;
        example = 9121;
        description = "Port of a node's /metrics, /healthz and /readyz.";
      };
      grafana = mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = ''
          Whether `monitoring.host` gets Grafana, too, with a dashboard of the cluster. Its
          `security.secret_key` is made at the first boot, unless `services.grafana.settings` has one.
        '';
      };
    };
  };
}
