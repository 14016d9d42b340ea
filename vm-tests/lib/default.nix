# Builds a VM test of a whole cluster from the modules, imported as users do.
{
  lib,
  testers,
  package,
}:
{
  name,
  # The test script, appended to helpers.py; or a function of the test's nodes that returns the script.
  script,
  ftpNodes ? [
    "ftp1"
    "ftp2"
  ],
  # The machine of each other role.
  balancer ? "lb",
  auth ? "backend",
  redis ? "backend",
  storage ? "backend",
  # A module with changes to services.distributedFtp on all machines.
  cluster ? { },
  # Further flags of the scripts' curl.
  curl ? "",
  # Further configuration of the machines, and further machines.
  machines ? { },
}:
let
  # For tests only: keep real secrets out of the store.
  secrets = {
    node-token = "a token for the nodes";
    redis-password = "a password for Redis";
    # Output of `authd hash-password` for "secret", with low cost because the machines are slow.
    user-demo = "$argon2id$v=19$m=1024,t=1,p=1$8aCWlqnXu46nnFDSh+gFrQ$GgnIelifQhLr9gjFoOv3mDF7mfYHfmT+yUAxgr76a8U";
  };

  description =
    { config, nodes, ... }:
    let
      addressOf = machine: nodes.${machine}.networking.primaryIPAddress;
      secret = file: "/etc/ftp-secrets/${file}";
    in
    {
      imports = [
        ../../nixos-modules
        cluster
      ];
      environment.etc = lib.mapAttrs' (
        file: text:
        lib.nameValuePair "ftp-secrets/${file}" {
          inherit text;
          mode = "0400";
        }
      ) secrets;

      # Small buffers, so that the node does not finish a transfer long before a slow client.
      boot.kernel.sysctl = {
        "net.ipv4.tcp_rmem" = "4096 65536 131072";
        "net.ipv4.tcp_wmem" = "4096 65536 131072";
      };

      services.distributedFtp = {
        # The client knows only the balancer.
        enable = lib.mkDefault (config.networking.hostName != "client");
        inherit package;
        openFirewall = true;
        cluster = {
          externalAddress = addressOf balancer;
          passivePorts = {
            from = 50000;
            to = 50029;
          };
          nodes = lib.genAttrs ftpNodes (node: {
            address = addressOf node;
          });
          balancers.${balancer}.address = addressOf balancer;
          auth.${auth}.address = addressOf auth;
          redis = {
            address = addressOf redis;
            host = redis;
          };
          storage = {
            type = lib.mkDefault "nfs";
            server = addressOf storage;
            host = storage;
            export = "/srv/ftp";
          };
        };
        secrets = {
          nodeTokenFile = secret "node-token";
          redisPasswordFile = secret "redis-password";
        };
        users.demo.hashedPasswordFile = secret "user-demo";
        ftpd.settings = {
          # Short limits, so that the tests need not wait for minutes.
          drain_timeout = lib.mkDefault "2m";
          stall_timeout = lib.mkDefault "30s";
          max_sessions = lib.mkDefault 500;
          max_transfers = lib.mkDefault 100;
        };
      };
    };

  client =
    { pkgs, ... }:
    {
      environment.etc."ftptest.py".source = ./ftptest.py;
      environment.systemPackages = [
        pkgs.curl
        pkgs.lftp
        pkgs.netcat
        pkgs.openssl
        pkgs.python3
      ];
    };
  # Programs that the scripts use on the machines.
  tools =
    { pkgs, ... }:
    {
      environment.systemPackages = [
        pkgs.curl
        pkgs.netcat
      ];
    };

  names = lib.unique (
    [
      "client"
      balancer
      auth
      redis
      storage
    ]
    ++ ftpNodes
    ++ lib.attrNames machines
  );
in
testers.runNixOSTest {
  inherit name;
  globalTimeout = 1800;
  defaults = description;
  nodes = lib.genAttrs names (machine: {
    imports = [
      (if machine == "client" then client else tools)
      (machines.${machine} or { })
    ];
  });

  testScript =
    { nodes, ... }:
    let
      list = lib.concatStringsSep ", ";
    in
    lib.concatStringsSep "\n" [
      ''
        # Values that the script needs from the configuration.
        ftp_nodes = [${list ftpNodes}]
        balancer, auth, redis, storage = ${balancer}, ${auth}, ${redis}, ${storage}
        auth_address = "${nodes.${auth}.networking.primaryIPAddress}"
        curl_flags = "${curl}"
        client_address = "${nodes.client.networking.primaryIPAddress}"
        parts = [
            (redis, "redis-ftp.service"),
            (auth, "authd.service"),
            (storage, "${
              if nodes.${storage}.services.nfs.server.enable then "nfs-server.service" else "multi-user.target"
            }"),
            (balancer, "ftp-balancer.service"),
            (balancer, "ftp-relay.service"),
        ] + [(node, "ftpd.service") for node in ftp_nodes]
      ''
      (lib.readFile ./helpers.py)
      (if lib.isFunction script then script { inherit nodes; } else script)
    ];
}
