# Nodes and ports → the balancer's nftables rules: the text templates of this folder, filled.
{ lib }:
{
  # Where the kernel takes urgent data back into the stream.
  controlPorts,
  # [ { name; address; slice = { from; to; }; } ], addresses of one family; none: nginx carries all.
  nodes,
  # Addresses that clients connect to, of either family, or all (0.0.0.0, ::).
  listenAddresses,
  # Whether the host forwards for others too: else it does for nobody.
  isRouter ? false,
}:
let
  fill =
    template: values:
    lib.removeSuffix "\n" (
      lib.replaceStrings (map (name: "@${name}@") (lib.attrNames values)) (lib.attrValues values) (
        lib.readFile (./. + "/${template}")
      )
    );
  isV6 = lib.hasInfix ":";
  list = lib.concatStringsSep ", ";
  range = slice: "${toString slice.from}-${toString slice.to}";

  # A range with fewer ports than nodes gives slices that are empty.
  served = lib.filter (node: node.slice.from <= node.slice.to) nodes;
  v6 = isV6 (lib.head served).address;
  family = if v6 then "ip6" else "ip";
  ofFamily = lib.filter (address: isV6 address == v6) listenAddresses;
  destination = lib.optionalString (
    !(lib.elem (if v6 then "::" else "0.0.0.0") ofFamily)
  ) "${family} daddr { ${list ofFamily} } ";

  # What clients reach over the other family only stays with nginx.
  slices = lib.optionals (ofFamily != [ ]) (
    map (
      node:
      fill "slice.nft" {
        inherit (node) name;
        inherit family destination;
        ports = range node.slice;
        node = node.address;
      }
    ) served
  );
  counters =
    direction: list (map (node: ''${range node.slice} : "${direction}_${node.name}"'') served);

  dataPath = fill "data-path.nft" {
    inherit family;
    protocol = if v6 then "ipv6" else "ipv4";
    counters = lib.concatMapStringsSep "\n" (
      node: "    counter to_${node.name} { }\n    counter from_${node.name} { }"
    ) served;
    to_nodes = counters "to";
    from_nodes = counters "from";
    slices = lib.concatStringsSep "\n" slices;
    other_forwarding = if isRouter then "accept" else "drop";
    sources = list (map (node: "${node.address} . ${range node.slice}") served);
  };

  text =
    fill "balancer.nft" {
      control_ports = list (map toString controlPorts);
      data_path = lib.optionalString (served != [ ]) dataPath;
    }
    + "\n";
in
assert lib.assertMsg (
  builtins.match ".*@[a-z_]+@.*" (lib.replaceStrings [ "\n" ] [ " " ] text) == null
) "nginx/kernel/rules.nix: a placeholder is left in\n${text}";
text
