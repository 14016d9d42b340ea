# The balancer's nftables rules: the text templates of this folder, filled.
# → { urgentData = { controlPorts }: text; dataPath = { nodes, … }: text; }
{ lib }:
let
  fill =
    template: values:
    let
      text = lib.replaceStrings (map (name: "@${name}@") (lib.attrNames values)) (lib.attrValues values) (
        lib.readFile (./. + "/${template}")
      );
    in
    assert lib.assertMsg (
      builtins.match ".*@[a-z_]+@.*" (lib.replaceStrings [ "\n" ] [ " " ] text) == null
    ) "nginx/kernel/rules.nix: a placeholder is left in\n${text}";
    text;
  isV6 = lib.hasInfix ":";
  list = lib.concatStringsSep ", ";
  range = slice: "${toString slice.from}-${toString slice.to}";
in
{
  urgentData =
    {
      # Ports on which the kernel clears the urgent flag of TCP segments.
      controlPorts,
    }:
    fill "urgent-data.nft" { control_ports = list (map toString controlPorts); };

  dataPath =
    {
      # [ { name; address; slice; } ], addresses of one IP version. `slice` is { from; to; }, or null if the
      # node leases its blocks.
      nodes,
      # The cluster's passive range, { from; to; }.
      passivePorts,
      # Addresses that clients connect to, of either IP version, or all (0.0.0.0, ::).
      listenAddresses,
      # True if the host also forwards other traffic. Otherwise the rules drop all other forwarded packets.
      isRouter ? false,
    }:
    let
      v6 = isV6 (lib.head nodes).address;
      family = if v6 then "ip6" else "ip";
      ofFamily = lib.filter (address: isV6 address == v6) listenAddresses;
      destination = lib.optionalString (
        !(lib.elem (if v6 then "::" else "0.0.0.0") ofFamily)
      ) "${family} daddr { ${list ofFamily} } ";
      counters = direction: list (map (node: ''${node.address} : "${direction}_${node.name}"'') nodes);
      static = lib.filter (node: node.slice != null) nodes;
    in
    fill "data-path.nft" {
      inherit family;
      protocol = if v6 then "ipv6" else "ipv4";
      address_type = if v6 then "ipv6_addr" else "ipv4_addr";
      passive_ports = range passivePorts;
      owners = lib.optionalString (static != [ ]) (
        fill "owners.nft" {
          elements = list (map (node: "${range node.slice} : ${node.address}") static);
        }
      );
      counters = lib.concatMapStringsSep "\n" (
        node: "    counter to_${node.name} { }\n    counter from_${node.name} { }"
      ) nodes;
      to_nodes = counters "to";
      from_nodes = counters "from";
      # ftp-relay carries connections to addresses of the other IP version.
      redirect = lib.optionalString (ofFamily != [ ]) (
        fill "redirect.nft" {
          inherit family destination;
          passive_ports = range passivePorts;
        }
      );
      other_forwarding = if isRouter then "accept" else "drop";
      nodes = list (map (node: node.address) nodes);
    };
}
