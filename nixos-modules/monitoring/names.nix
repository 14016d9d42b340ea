# The names of our metrics that the rules and the dashboard use. A check verifies that they exist.
{ lib }:
let
  text = lib.concatMapStrings builtins.readFile [
    ../../deploy/monitoring/rules.yaml
    ../../deploy/monitoring/dashboard.json
  ];
  found = lib.concatLists (lib.filter lib.isList (builtins.split "((ftp|authd)_[a-z_]+)" text));
  # The name without the suffix that Prometheus adds to a histogram's series.
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
