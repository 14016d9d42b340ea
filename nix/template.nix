# Evaluates template/flake.nix. Only a deployment needs its inputs sops-nix and colmena; here a module with
# the options that the template sets replaces each.
{ self, nixpkgs }:
let
  inherit (nixpkgs) lib;
  inherit (lib) mkOption types;

  sops.options.sops = {
    defaultSopsFile = mkOption { type = types.path; };
    secrets = mkOption {
      default = { };
      type = types.attrsOf (
        types.submodule (
          { name, ... }:
          {
            options = {
              path = mkOption {
                type = types.str;
                default = "/run/secrets/${name}";
              };
              restartUnits = mkOption {
                type = types.listOf types.str;
                default = [ ];
              };
              reloadUnits = mkOption {
                type = types.listOf types.str;
                default = [ ];
              };
            };
          }
        )
      );
    };
  };
  deployment.options.deployment.targetHost = mkOption { type = types.str; };
in
(import ../template/flake.nix).outputs {
  self = ../template;
  inherit nixpkgs;
  distributed-ftp = self;
  sops-nix.nixosModules = { inherit sops; };
  colmena = {
    lib.makeHive =
      hive:
      lib.mapAttrs (
        _: module:
        lib.nixosSystem {
          modules = [
            module
            deployment
          ];
        }
      ) (removeAttrs hive [ "meta" ]);
    packages.x86_64-linux.colmena = nixpkgs.legacyPackages.x86_64-linux.emptyDirectory;
  };
}
