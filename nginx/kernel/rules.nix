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
      # [ { name; address; slice = { from; to; }; } ], addresses of one IP version. With filledByRelay the
      # slices are not needed.
      nodes,
      # The passive range of the cluster: { from; to; }.
      passivePorts ? {
        from = lib.foldl' lib.min 65535 (map (node: node.slice.from) nodes);
        to = lib.foldl' lib.max 1 (map (node: node.slice.to) nodes);
      },
      # True if ftp-relay fills the map `owners` (its setting nft_map = "inet ftp_data_path owners"), so that
      # nodes lease their ports. Otherwise the slices of the nodes fill it.
      filledByRelay ? false,
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
      ports = range passivePorts;
      slices = map (node: "${range node.slice} : ${node.address}") nodes;
    in
    fill "data-path.nft" {
      inherit family ports;
      protocol = if v6 then "ipv6" else "ipv4";
      owners = lib.optionalString (!filledByRelay) "elements = { ${list slices} }";
      # The process that listens on the ports carries connections to addresses of the other IP version.
      redirect = lib.optionalString (ofFamily != [ ]) (
        fill "redirect.nft" { inherit family destination ports; }
      );
      other_forwarding = if isRouter then "accept" else "drop";
      nodes = list (map (node: node.address) nodes);
    };
}
