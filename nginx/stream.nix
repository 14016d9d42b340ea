# Nodes and ports → the contents of nginx's stream { }, from the text templates of this folder.
{ lib }:
{
  # [ { name; address; slice = { from; to; }; } ]; `slice` only with `carriesData`.
  nodes,
  # Name in DNS whose addresses are the nodes', or null: then `nodes` are.
  controlName ? null,
  # Addresses of the DNS servers that know the name.
  resolvers ? [ ],
  # True if this nginx is 1.27.3 or later, where upstream servers can have names.
  resolvesUpstreams ? true,
  # True if the data connections pass nginx.
  carriesData ? false,
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
  dataTimeout ? null,
}:
let
  fill = import ./fill.nix { inherit lib; };
  isV6 = lib.hasInfix ":";
  bracketed = address: if isV6 address then "[${address}]" else address;
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

  byName = {
    name = controlName;
    resolvers = lib.concatMapStringsSep " " bracketed resolvers;
    # Do not ask for addresses that no node has.
    resolver_options = lib.optionalString (
      !(lib.any isV6 (map (node: node.address) nodes))
    ) " ipv6=off";
  };
  control =
    port: nodePort:
    let
      values = {
        port = toString nodePort;
        control_listen = listen (toString port);
        control_timeout = controlTimeout;
      };
      servers =
        if controlName == null then
          lines (
            node:
            fill "upstream-server.conf" {
              node = bracketed node.address;
              port = toString nodePort;
            }
          ) nodes
        else
          fill "upstream-name.conf" (byName // { port = toString nodePort; });
    in
    if controlName != null && !resolvesUpstreams then
      fill "control-by-name.conf" (byName // values)
    else
      fill "control.conf" (values // { upstream_servers = servers; });

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
    control = control controlPort nodePort;
    implicit_control = lib.optionalString (implicitPort != null) (control implicitPort implicitPort);
    data_servers = lib.optionalString carriesData (lines dataServer nodes);
  };
in
# As in the tests of ./dev's balancer: an unfilled placeholder is a bug in this file.
assert lib.assertMsg (
  !(lib.hasInfix "@" text)
) "nginx/stream.nix: a placeholder is left in\n${text}";
text
