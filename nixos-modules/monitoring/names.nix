# Names of our metrics that the rules and the dashboard use, for the check that they exist.
{ lib }:
let
  text = builtins.toJSON [
    (import ./rules.nix)
    (import ./dashboard.nix { inherit lib; })
  ];
  found = lib.concatLists (lib.filter lib.isList (builtins.split "((ftp|authd)_[a-z_]+)" text));
  # What Prometheus appends to a histogram's name.
  base =
    name:
    lib.foldl' (n: suffix: lib.removeSuffix suffix n) name [
      "_bucket"
      "_sum"
      "_count"
    ];
in
lib.unique (
  map base (
    lib.filter (
      name:
      !(lib.elem name [
        "ftp"
        "authd"
      ])
    ) found
  )
)
