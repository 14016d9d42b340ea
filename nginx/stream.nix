# Nodes and ports → the contents of nginx's stream { }, from the text templates of this folder.
{ lib }:
{
  # [ { name; address; slice = { from; to; }; } ]
  nodes,
  # Addresses that clients connect to; IPv6 without brackets.
  listenAddresses,
  # The control port of the balancer and the one of the nodes.
  controlPort,
  nodePort ? controlPort,
  # The port for implicit TLS, at the balancer and the nodes, or null.
  implicitPort ? null,
  accessLog,
  # nginx durations; README.md says which limits of the nodes they must exceed.
  controlTimeout,
  dataTimeout,
}:
let
  fill = import ./fill.nix { inherit lib; };
  bracketed = address: if lib.hasInfix ":" address then "[${address}]" else address;
  lines = lib.concatMapStringsSep "\n";

  listen =
    ports:
    lines (
      address:
      fill "listen.conf" {
        address = bracketed address;
        inherit ports;
      }
    ) listenAddresses;

  upstreamServer =
    port: node:
    fill "upstream-server.conf" {
      node = bracketed node.address;
      port = toString port;
    };

  dataServer =
    node:
    fill "data-server.conf" {
      inherit (node) name;
      node = bracketed node.address;
      data_listen = listen "${toString node.slice.from}-${toString node.slice.to}";
      data_timeout = dataTimeout;
    };

  text = fill "stream.conf" {
    access_log = accessLog;
    control_listen = listen (toString controlPort);
    control_timeout = controlTimeout;
    upstream_servers = lines (upstreamServer nodePort) nodes;
    data_servers = lines dataServer nodes;
    implicit_control = lib.optionalString (implicitPort != null) (
      fill "implicit-control.conf" {
        control_timeout = controlTimeout;
        implicit_listen = listen (toString implicitPort);
        implicit_upstream_servers = lines (upstreamServer implicitPort) nodes;
      }
    );
  };
in
# As in the tests of ./dev's balancer: an unfilled placeholder is a bug in this file.
assert lib.assertMsg (
  !(lib.hasInfix "@" text)
) "nginx/stream.nix: a placeholder is left in\n${text}";
text
