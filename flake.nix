{
  description = "Several FTP servers that behave like one";

  # NixOS supports 26.05 until the end of 2026. For 26.11 change this line and template/, run
  # `nix flake update`, then the checks.
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      forAllSystems =
        f:
        lib.genAttrs [
          "x86_64-linux"
          "aarch64-linux"
        ] (system: f nixpkgs.legacyPackages.${system} self.packages.${system});

      module =
        file:
        { pkgs, ... }:
        {
          imports = [ file ];
          services.distributedFtp.package =
            lib.mkDefault
              self.packages.${pkgs.stdenv.hostPlatform.system}.default;
        };
      app = description: package: program: {
        type = "app";
        program = lib.getExe' package program;
        meta = { inherit description; };
      };
    in
    {
      overlays.default = final: _prev: {
        distributed-ftp = final.callPackage ./nix/package.nix { };
      };

      packages = forAllSystems (
        pkgs: own:
        let
          daemon = distributed-ftp: name: pkgs.callPackage ./nix/daemon.nix { inherit distributed-ftp name; };
          image =
            daemon:
            pkgs.callPackage ./nix/image.nix {
              inherit (own.default) version;
              inherit daemon;
            };
          # The ordinary build runs the tests.
          static = pkgs.pkgsStatic.callPackage ./nix/package.nix { doCheck = false; };
        in
        {
          default = pkgs.callPackage ./nix/package.nix { };
          ftpd = daemon own.default "ftpd";
          authd = daemon own.default "authd";
          ftp-relay = daemon own.default "ftp-relay";
          ftpd-static = daemon static "ftpd";
          authd-static = daemon static "authd";
          ftp-relay-static = daemon static "ftp-relay";
          image-ftpd = image own.ftpd;
          image-authd = image own.authd;
          image-ftp-relay = image own.ftp-relay;
          demo = pkgs.callPackage ./nix/demo.nix { distributed-ftp = own.default; };
          # docs/options.md is a copy of this; a check compares them.
          options = import ./nix/options.nix {
            inherit lib pkgs;
            inherit (self.nixosConfigurations.example-ftp1) options;
          };
        }
      );

      apps = forAllSystems (
        _pkgs: own: rec {
          cluster = app "A whole cluster on this machine's loopback network" own.demo "distributed-ftp-demo";
          default = cluster;
          ftpd = app "An FTP node" own.default "ftpd";
          authd = app "The service for users and sessions" own.default "authd";
          ftp-relay = app "The relay of data connections" own.default "ftp-relay";
        }
      );

      nixosModules =
        lib.genAttrs [
          "node"
          "balancer"
          "auth"
          "redis"
          "storage"
          "monitoring"
        ] (role: module ./nixos-modules/${role}.nix)
        // {
          default = module ./nixos-modules;
        };

      # The hosts of the template, so that checks cover the template and the documentation's examples.
      nixosConfigurations =
        lib.mapAttrs' (name: lib.nameValuePair "example-${name}")
          (import ./nix/template.nix { inherit self nixpkgs; }).nixosConfigurations;

      templates.default = {
        path = ./template;
        description = "A cluster of three FTP nodes, a balancer, and one host for the rest";
      };

      checks = forAllSystems (
        pkgs: own:
        import ./nix/checks.nix {
          inherit
            lib
            pkgs
            self
            nixpkgs
            own
            ;
        }
        // own.default.tests
      );

      devShells = forAllSystems (
        pkgs: own: {
          default = pkgs.mkShell {
            # With nginx, Redis and the FTP clients of the tests, which ./dev would install on Debian.
            inputsFrom = [ own.default ];
            packages = [
              pkgs.clippy
              pkgs.rustfmt
              pkgs.rust-analyzer
              pkgs.nixfmt-tree
              pkgs.shellcheck
              # For tests with network namespaces, which the package's build skips.
              pkgs.nftables
              pkgs.iproute2
              pkgs.procps
            ];
          };
        }
      );

      formatter = forAllSystems (pkgs: _own: pkgs.nixfmt-tree);
    };
}
