# services.distributedFtp.cluster: the hosts of the cluster and their roles.
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
      address = addressOption "Address of this host on which the node listens for the balancers.";
      passivePorts = mkOption {
        type = types.nullOr portRange;
        default = null;
        example = {
          from = 50000;
          to = 50099;
        };
        description = ''
          The node's slice of the cluster's passive ports. Set it for all nodes or for none. Without it
          the nodes get equal slices in the order of their names, and a new node moves the slices of the
          others. With it the others keep their slices and need no restart.
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
          Whether the host also forwards traffic other than FTP (containers, a VPN). With
          `dataPath = "kernel"` the host forwards data connections and drops all other forwarded traffic;
          with this option the host's other rules decide about the other traffic.
        '';
      };
    };
  };

  auth = types.submodule {
    options = {
      address = addressOption "Address on which authd listens for the nodes.";
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
        Address that PASV announces for data connections. Needed if the balancer is behind address
        translation; otherwise clients get the address that they connected to.
      '';
    };

    controlPort = mkOption {
      type = types.port;
      default = 21;
      example = 2121;
      description = "The control port of the balancers and of the nodes.";
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
        Ports for data connections of the whole cluster. One port serves any number of clients with
        different addresses at the same time; clients behind one address need one port each.
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
        How data connections pass the balancer: through nginx, as control connections do, or through
        the kernel (nftables), at a fraction of the CPU time. `kernel` needs nodes on separate hosts in the
        same network as the balancer, which becomes their gateway for the passive ports:
        [how it works and what it needs](../nginx/kernel/README.md).
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
        With `dataPath = "kernel"`: the gateway to which the nodes send packets of data connections. With
        several balancers, use an address in the nodes' network that moves, together with the public
        address, to the balancer that clients reach (keepalived can do that).
      '';
    };

    nodes =
      hosts node
        "Hosts that run an FTP node, by name. Their order by name decides the slices of the passive ports."
        ''{ ftp1.address = "10.0.0.11"; ftp2.address = "10.0.0.12"; }'';

    balancers =
      hosts balancer
        "Hosts that run a balancer, by name. Name hosts with a balancer other than nginx here too: the nodes accept PROXY headers only from these hosts."
        ''{ lb1.address = "10.0.0.10"; }'';

    auth =
      hosts auth "Hosts that run authd, by name. The nodes try them in this order."
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
          URL of an existing Redis, instead of `address` and `port`. The password goes into
          `secrets.redisPasswordFile`. With `unix:///PATH` each host uses its own socket at that path.
        '';
      };
      host = mkOption {
        type = types.nullOr types.str;
        default = if cfg.redis.url != null then null else cluster.hostAt cfg.redis.address;
        defaultText = lib.literalMD "the host above that has `redis.address`; none with `redis.url`";
        example = "redis1";
        description = "Name of the host that runs Redis; null for an existing Redis.";
      };
    };

    monitoring = {
      host = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "monitor1";
        description = "Name of the host that runs Prometheus with targets and alert rules for the cluster.";
      };
      address = addressOption ''
        Address from which Prometheus connects, on `monitoring.host` or elsewhere. If set, the nodes serve
        their metrics on their own address, otherwise on loopback.
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
          Whether `monitoring.host` also runs Grafana with a dashboard of the cluster. Its
          `security.secret_key` is generated at the first boot unless `services.grafana.settings` sets it.
        '';
      };
    };
  };
}
