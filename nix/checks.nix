# The flake's checks, except the VM tests. Checks that need no build fail during evaluation, so that
# `nix flake check --no-build` runs them.
{
  lib,
  pkgs,
  self,
  nixpkgs,
  own,
}:
let
  passes =
    name: problems:
    if problems == [ ] then
      pkgs.runCommand name { } "touch $out"
    else
      throw "${name}:\n${lib.concatMapStrings (problem: "- ${problem}\n") problems}";

  rust = own.default.src;
  nixFiles = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.fileFilter (file: file.hasExt "nix") ../.;
  };

  inherit (pkgs.stdenv.hostPlatform) system;
  sample = import ./sample-cluster.nix {
    inherit
      lib
      nixpkgs
      self
      system
      ;
  };

  failed = config: map (a: a.message) (lib.filter (a: !a.assertion) config.assertions);
in
{
  package = own.default;

  clippy = own.default.overrideAttrs (previous: {
    pname = "${previous.pname}-clippy";
    nativeBuildInputs = (previous.nativeBuildInputs or [ ]) ++ [ pkgs.clippy ];
    buildPhase = "cargo clippy --offline --workspace --all-targets -- -D warnings";
    doCheck = false;
    installPhase = "touch $out";
  });

  rustfmt =
    pkgs.runCommand "rustfmt"
      {
        nativeBuildInputs = [
          pkgs.cargo
          pkgs.rustfmt
        ];
      }
      ''
        cd ${rust}
        cargo fmt --all --check
        touch $out
      '';

  nixfmt = pkgs.runCommand "nixfmt" { nativeBuildInputs = [ pkgs.nixfmt ]; } ''
    find ${nixFiles} -name '*.nix' -exec nixfmt --check {} +
    touch $out
  '';

  nginx = pkgs.callPackage ../nginx/check.nix { };

  # ftpd can write to the storage directory of its image.
  image = pkgs.runCommand "image" { } ''
    ${own.image-ftpd} | tar -xf -
    for layer in */layer.tar; do tar --numeric-owner -tvf "$layer"; done >files
    grep -E '^drwxr-x--- 2121/2121 .* (\./)?srv/ftp/$' files
    touch $out
  '';

  # default.nix has the same outputs as the flake.
  without-flakes =
    let
      plain = import ../default.nix { inherit nixpkgs system; };
    in
    passes "without-flakes" (
      lib.optional (
        plain.drvPath != own.default.drvPath
      ) "default.nix is another package than the flake's"
      ++ lib.optional (
        lib.attrNames plain.nixosModules != lib.attrNames self.nixosModules
      ) "default.nix has other modules than the flake"
    );

  # The hosts of the template evaluate without a warning.
  example-hosts = passes "example-hosts" (
    lib.concatLists (
      lib.mapAttrsToList (
        name: host:
        map (message: "${name}: ${message}") (failed host.config ++ host.config.warnings)
        # Throws if a host cannot be built.
        ++ builtins.seq host.config.system.build.toplevel.drvPath [ ]
      ) self.nixosConfigurations
    )
  );

  template = passes "template" (import ./template-check.nix { inherit lib self nixpkgs; });

  module-assertions = passes "module-assertions" (
    import ./module-assertions.nix { inherit lib sample failed; }
  );

  # Changes of a running cluster that must not end a session.
  unit-changes = passes "unit-changes" (import ./unit-changes.nix { inherit lib sample; });

  documentation = passes "documentation" (
    lib.optional (
      builtins.readFile ../docs/options.md != own.options.text
    ) "docs/options.md is not what `nix build .#options` makes"
    ++ lib.optional (
      !(lib.hasInfix (builtins.readFile ../template/cluster.nix) (
        builtins.readFile ../docs/deployment-nixos.md
      ))
    ) "docs/deployment-nixos.md does not show template/cluster.nix"
    ++ map (line: "docs/options.md: a path with a space: ${line}") (
      lib.filter (line: builtins.match "[*] example: `\"/[^\"]* [^\"]*\"`" line != null) (
        lib.splitString "\n" own.options.text
      )
    )
  );

  # An alert or panel with a metric that no daemon has would stay silent.
  metric-names =
    let
      # A test compares this page with the daemons.
      metrics = builtins.readFile ../docs/metrics.md;
      named = import ../nixos-modules/monitoring/names.nix { inherit lib; };
    in
    passes "metric-names" (
      map (name: "no daemon has the metric ${name}") (
        lib.filter (name: !(lib.hasInfix "`${name}`" metrics)) named
      )
    );
}
