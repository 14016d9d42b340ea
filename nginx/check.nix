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
  rules =
    addresses: listenAddresses:
    (import ./kernel/rules.nix { inherit lib; }).dataPath {
      nodes = nodes addresses;
      inherit listenAddresses;
    };
  ipv4 = [
    "10.0.0.11"
    "10.0.0.12"
    "10.0.0.13"
  ];
  says = lib.hasInfix;
  # Also with more clients than one worker can serve.
  configurations =
    map
      (
        clients:
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
            };
          }
        )
      )
      [
        3000
        3000000
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
assert says "        tcp dport 50003-50006 counter dnat ip to 10.0.0.12" (
  rules ipv4 [
    "0.0.0.0"
    "::"
  ]
);
assert says "ip daddr { 203.0.113.10 } tcp dport 50000-50002 counter dnat ip to 10.0.0.11" (
  rules ipv4 [
    "203.0.113.10"
    "2001:db8::10"
  ]
);
assert says "tcp dport 50000-50002 counter dnat ip6 to fd00::11" (rules [ "fd00::11" ] [ "::" ]);
# Clients use only the other IP version: nginx carries all data.
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
