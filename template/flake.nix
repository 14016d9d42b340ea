{
  description = "A cluster of FTP servers that behave like one";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";
    # The location of this project: github:OWNER/REPOSITORY, or path:/some/where.
    distributed-ftp.url = "path:/etc/nixos/distributed-ftp";
    distributed-ftp.inputs.nixpkgs.follows = "nixpkgs";
    # Secrets: encrypted in this repository, decrypted on the hosts.
    sops-nix.url = "github:Mic92/sops-nix";
    sops-nix.inputs.nixpkgs.follows = "nixpkgs";
    # Deployment from one machine.
    colmena.url = "github:nix-community/colmena";
    colmena.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    {
      self,
      nixpkgs,
      distributed-ftp,
      sops-nix,
      colmena,
    }:
    let
      inherit (nixpkgs) lib;
      # The machine that deploys.
      system = "x86_64-linux";

      modules = lib.mapAttrs (name: host: {
        imports = [
          distributed-ftp.nixosModules.default
          sops-nix.nixosModules.sops
          # The same on every host.
          ./cluster.nix
          ./secrets.nix
          # The host's own settings.
          host
        ];
        networking.hostName = name;
      }) (import ./hosts.nix);

      configurations = lib.mapAttrs (_: module: lib.nixosSystem { modules = [ module ]; }) modules;
      cluster = (lib.head (lib.attrValues configurations)).config.services.distributedFtp.cluster;

      # The hosts that the nodes depend on come first, and the balancers last, so that a balancer knows a new
      # node only when that node serves.
      nodes = lib.attrNames cluster.nodes;
      balancers = lib.attrNames cluster.balancers;
      order = lib.subtractLists (nodes ++ balancers) (lib.attrNames modules) ++ nodes ++ balancers;
    in
    {
      nixosConfigurations = configurations;

      # colmena apply --on ftp1
      colmenaHive = colmena.lib.makeHive (
        {
          meta.nixpkgs = nixpkgs.legacyPackages.${system};
        }
        // lib.mapAttrs (
          _: module:
          { config, ... }:
          {
            imports = [ module ];
            deployment.targetHost = (lib.head config.networking.interfaces.eth0.ipv4.addresses).address;
          }
        ) modules
      );

      # nix run .#deploy: the whole cluster in order, one host after another. Each node drains before it
      # changes, and the next host waits until the node serves again. The first failure ends the deployment.
      apps.${system}.deploy = {
        type = "app";
        program = lib.getExe (
          nixpkgs.legacyPackages.${system}.writeShellApplication {
            name = "deploy";
            runtimeInputs = [ colmena.packages.${system}.colmena ];
            text = ''
              for host in ${toString order}; do
                colmena apply --on "$host"
              done
            '';
          }
        );
      };
    };
}
