# Renders a sample of the balancer's configuration and lets nginx itself check it.
{
  lib,
  runCommand,
  writeText,
  nginxStable,
}:
let
  slice = import ./ports.nix {
    from = 50000;
    to = 50010;
  };
  stream = import ./stream.nix { inherit lib; } {
    nodes =
      lib.imap0
        (position: address: {
          name = "ftp${toString (position + 1)}";
          inherit address;
          slice = slice position 3;
        })
        [
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
  configuration = writeText "nginx.conf" ''
    pid nginx.pid;
    error_log stderr;
    events { worker_connections 1024; }
    stream {
    ${stream}
    }
  '';
in
# The slices that the nodes compute (common/src/node.rs, eleven_ports_over_three_nodes).
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
runCommand "nginx-configuration" { nativeBuildInputs = [ nginxStable ]; } ''
  nginx -p "$PWD" -e stderr -t -c ${configuration}
  touch $out
''
