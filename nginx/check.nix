# Renders a sample of the balancer's configuration and checks it with nginx and gixy.
{
  lib,
  runCommand,
  writeText,
  nginxStable,
  # NixOS' checker of nginx configurations. nixpkgs may rename it.
  gixy ? null,
}:
let
  slice = import ./ports.nix {
    from = 50000;
    to = 50010;
  };
  nodes = lib.imap0 (
    position: address: {
      name = "ftp${toString (position + 1)}";
      inherit address;
      slice = slice position 3;
    }
  );
  # Checking nftables rules needs a kernel: the VM test loads them.
  rulesOf =
    nodes: listenAddresses:
    (import ./kernel/rules.nix { inherit lib; }).dataPath {
      inherit nodes listenAddresses;
      passivePorts = {
        from = 50000;
        to = 50010;
      };
    };
  rules = addresses: rulesOf (nodes addresses);
  ipv4 = [
    "10.0.0.11"
    "10.0.0.12"
    "10.0.0.13"
  ];
  says = lib.hasInfix;
  byName = {
    controlName = "ftp-nodes.test";
    resolvers = [
      "127.0.0.1"
      "::1"
    ];
    resolvesUpstreams = lib.versionAtLeast (lib.getVersion nginxStable) "1.27.3";
  };
  # Control connections only; data connections too, and more clients than one worker can serve; nodes by their
  # name in DNS, for both versions of nginx.
  configurations =
    map
      (
        {
          clients ? 3000,
          ...
        }@change:
        writeText "nginx.conf" (
          import ./balancer.nix { inherit lib; } {
            pid = "nginx.pid";
            files = 1024 * 1024;
            inherit clients;
            shutdownTimeout = "300s";
            stream = {
              nodes = nodes [
                "127.0.0.11"
                "127.0.0.12"
                "fd00::13"
              ];
              listenAddresses = [ "127.0.0.1" ];
              controlPort = 2121;
              implicitPort = 2990;
              accessLog = "/dev/null";
              controlTimeout = "4h";
              dataTimeout = "6m";
            }
            // removeAttrs change [ "clients" ];
          }
        )
      )
      [
        { }
        {
          clients = 3000000;
          carriesData = true;
        }
        byName
        (byName // { resolvesUpstreams = false; })
      ];
in
# The same slices as the nodes compute (common/src/node.rs, eleven_ports_over_three_nodes).
assert
  map (position: slice position 3) [
    0
    1
    2
  ] == [
    {
      from = 50000;
      to = 50002;
    }
    {
      from = 50003;
      to = 50006;
    }
    {
      from = 50007;
      to = 50010;
    }
  ];
assert says
  "add element inet ftp_data_path owners { 50000-50002 : 10.0.0.11, 50003-50006 : 10.0.0.12, 50007-50010 : 10.0.0.13 }"
  (rules ipv4 [ "0.0.0.0" ]);
assert says "        tcp dport 50000-50010 counter dnat ip to tcp dport map @owners" (
  rules ipv4 [
    "0.0.0.0"
    "::"
  ]
);
assert says "ip daddr { 203.0.113.10 } tcp dport 50000-50010 counter dnat ip to" (
  rules ipv4 [
    "203.0.113.10"
    "2001:db8::10"
  ]
);
assert says "50000-50002 : fd00::11" (rules [ "fd00::11" ] [ "::" ]);
# Leased blocks: ftp-relay writes the owners, and new rules keep them.
assert
  !(says "owners {" (
    lib.replaceStrings [ "map owners {" ] [ "" ] (
      rulesOf (map (node: node // { slice = null; }) (nodes ipv4)) [ "0.0.0.0" ]
    )
  ));
# Clients use only the other IP version: ftp-relay carries all data.
assert !(says "counter dnat" (rules ipv4 [ "::" ]));
runCommand "nginx-configuration"
  {
    nativeBuildInputs = [ nginxStable ] ++ lib.optional (gixy != null) gixy;
  }
  ''
    for configuration in ${toString configurations}; do
      nginx -p "$PWD" -e stderr -t -c "$configuration"
      ${lib.optionalString (gixy != null) "gixy \"$configuration\""}
    done
    touch $out
  ''
