# services.distributedFtp.cluster: the hosts of the cluster and their roles.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  inherit (import ./types.nix { inherit lib; })
    address
    interfaceName
    portRange
    redisUrl
    sentinel
    ;
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
          A fixed slice of the cluster's passive ports for this node. Set it for all nodes or for none. By
          default it is not needed: the nodes lease blocks of the range in the registry, each its fair share,
          and share them anew when a node joins or leaves. With `dataPath = "nginx"` the nodes have slices in
          any case: without this option equal ones, in the order of the nodes' names, and a new node moves
          those of the others.
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
      isExternal = mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = ''
          Whether this is a balancer that these modules do not set up: another program, a device or a service.
          It may send each connection to any node, if it sends a PROXY protocol header.
        '';
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
        "relay"
        "kernel"
        "nginx"
      ];
      default = "relay";
      example = "kernel";
      description = ''
        How data connections pass the balancer:

        * `relay`: ftp-relay carries each connection to the node that owns its port, as the registry says.
          Nodes come and go without any change on the balancer.
        * `kernel`: the kernel forwards them (nftables), at a fraction of the CPU time. It needs nodes on
          separate hosts in the same network as the balancer, which becomes their gateway for the passive
          ports: [how it works and what it needs](../nginx/kernel/README.md). ftp-relay tells the kernel which
          node owns a port.
        * `nginx`: nginx carries them. **This breaks a promise:** nginx turns a reset of a client's connection
          into an orderly end, so an unencrypted upload that was cut short is confirmed with 226 as if it were
          complete. Only uploads with FTPS (`tls.required`) or with ALLO are safe. The nodes have fixed slices
          of the passive range, and log a warning at their start.
      '';
    };

    controlPath = mkOption {
      type = types.enum [
        "nginx"
        "relay"
      ];
      default = "nginx";
      example = "relay";
      description = ''
        How control connections pass the balancer. `nginx` gives them to the nodes in turn, and passes over a
        node that refuses connections. `relay`: ftp-relay chooses the ready node with the fewest sessions, and
        takes another one if a node does not greet; then no nginx runs on the balancers.
      '';
    };

    nodesDns = {
      name = mkOption {
        type = types.nullOr (types.strMatching "[a-zA-Z0-9.-]+");
        default = null;
        example = "ftp-nodes.internal.example.org";
        description = ''
          With `controlPath = "nginx"`: a name whose addresses in DNS are those of all nodes. nginx then asks DNS
          for the nodes every 5 s, and uses a new node without a new configuration. Without a name, nginx
          knows `nodes`, and a new node is a reload.
        '';
      };
      resolvers = mkOption {
        type = types.listOf address;
        default = [ ];
        example = [ "10.0.0.1" ];
        description = "Addresses of the DNS servers that nginx asks for `nodesDns.name`.";
      };
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
        address, to the balancer that clients reach: `floatingAddress` does that.
      '';
    };

    floatingAddress = {
      address = mkOption {
        type = types.nullOr address;
        default = null;
        example = "203.0.113.10";
        description = ''
          Address for clients that is on one of the balancers. keepalived (VRRP) moves it to another one if
          that balancer crashes, or if its nginx or ftp-relay stays away. The sessions of the clients end, and
          the clients connect again. With `dataPath = "kernel"` the address `dataGateway` moves together with it.
        '';
      };
      interface = mkOption {
        type = types.nullOr interfaceName;
        default = null;
        example = "eth0";
        description = "The balancers' network interface for the floating address.";
      };
      gatewayInterface = mkOption {
        type = types.nullOr interfaceName;
        default = cfg.floatingAddress.interface;
        defaultText = lib.literalExpression "cluster.floatingAddress.interface";
        example = "eth1";
        description = ''
          With `dataPath = "kernel"`: the balancers' network interface for `dataGateway`, in the nodes'
          network.
        '';
      };
      routerId = mkOption {
        type = types.ints.between 1 255;
        default = 121;
        example = 51;
        description = "VRRP's virtual router ID. Each cluster in the same network needs its own.";
      };
    };

    nodes =
      hosts node "Hosts that run an FTP node, by name."
        ''{ ftp1.address = "10.0.0.11"; ftp2.address = "10.0.0.12"; }'';

    balancers =
      hosts balancer
        "Hosts that run a balancer, by name. Name a balancer here too that these modules do not set up (`isExternal`): the nodes accept PROXY headers only from these hosts."
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
      sentinels = mkOption {
        type = types.listOf sentinel;
        default = [ ];
        example = [
          "10.0.0.21"
          "10.0.0.22"
          "10.0.0.23"
        ];
        description = ''
          Sentinels that watch an existing Redis, instead of `address` and `url`: `HOST[:PORT]`, with
          `rediss://` before each of them for TLS. They tell which server is the master. Other settings of
          the connection, such as `redis_ca_file`, go into the `settings` of each program.
        '';
      };
      sentinelMaster = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "ftp";
        description = "Name that the sentinels have for the master.";
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
        Address from which Prometheus connects, on `monitoring.host` or elsewhere. If set, the nodes and
        balancers serve their metrics on their own address, otherwise on loopback.
      '';
      metricsPort = mkOption {
        type = types.port;
        default = 9121;
        example = 9121;
        description = "Port of a node's /metrics, /healthz and /readyz.";
      };
      relayMetricsPort = mkOption {
        type = types.port;
        default = 9122;
        example = 9122;
        description = "Port of the /metrics, /healthz and /readyz of ftp-relay, on the balancers.";
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
