{
  description = "A cluster of FTP servers that behave like one";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";
    # Where the project is: github:OWNER/REPOSITORY, or path:/some/where.
    distributed-ftp.url = "path:/etc/nixos/distributed-ftp";
    distributed-ftp.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    {
      self,
      nixpkgs,
      distributed-ftp,
    }:
    {
      # nixos-rebuild switch --flake .#ftp1 --target-host root@10.0.0.11, and so on.
      nixosConfigurations = nixpkgs.lib.mapAttrs (
        name: host:
        nixpkgs.lib.nixosSystem {
          modules = [
            distributed-ftp.nixosModules.default
            # The same for all.
            ./cluster.nix
            # What only this host has.
            host
            { networking.hostName = name; }
          ];
        }
      ) (import ./hosts.nix);
    };
}
