# The flake's outputs, for Nix without flakes:
#   nix-build                     both daemons
#   nix-build -A image-ftpd       any of the flake's packages
#   nix-build -A checks.nginx     any of its checks
#   imports = [ (import ./distributed-ftp { }).nixosModules.default ];    in a host's configuration
{
  system ? builtins.currentSystem,
  # Another nixpkgs than the one in flake.lock, such as <nixpkgs>.
  nixpkgs ?
    let
      inherit ((builtins.fromJSON (builtins.readFile ./flake.lock)).nodes.nixpkgs) locked;
    in
    fetchTarball {
      url = "https://github.com/${locked.owner}/${locked.repo}/archive/${locked.rev}.tar.gz";
      sha256 = locked.narHash;
    },
}:
let
  # Calls the flake's outputs function as Nix does, with its inputs and itself.
  call =
    source: inputs:
    let
      outputs = (import "${toString source}/flake.nix").outputs (inputs // { self = flake; });
      flake = outputs // {
        outPath = source;
        inherit inputs outputs;
      };
    in
    flake;

  flake = call ./. { nixpkgs = call nixpkgs { }; };
  packages = flake.packages.${system};
in
packages.default
// packages
// {
  inherit (flake) nixosModules overlays;
  checks = flake.checks.${system};
  devShell = flake.devShells.${system}.default;
}
