# services.distributedFtp: the switch, the package, secrets. The rest is in the files beside this.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.distributedFtp;
  inherit (lib) mkOption types;

  secret =
    what: generated:
    mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      example = "/run/secrets/distributed-ftp/${what}";
      description = ''
        File outside the store that holds ${what}, in one line. Only root needs to read it: the units
        get it through LoadCredential. ${generated}
      '';
    };
in
{
  imports = [
    ./cluster.nix
    ./storage.nix
    ./tls.nix
    ./users.nix
    ./settings.nix
  ];

  options.services.distributedFtp = {
    enable = lib.mkEnableOption "this host's part in the Distributed FTP cluster";

    package = mkOption {
      type = types.package;
      default = pkgs.distributed-ftp;
      defaultText = lib.literalMD "the package of the flake that the module comes from";
      example = lib.literalExpression "pkgs.distributed-ftp";
      description = "Package that holds ftpd and authd.";
    };

    nginxPackage = mkOption {
      type = types.package;
      default = pkgs.nginxStable;
      defaultText = lib.literalExpression "pkgs.nginxStable";
      example = lib.literalExpression "pkgs.nginxMainline";
      description = "The balancer's nginx, with its stream module, version 1.21.4 or later.";
    };

    hostName = mkOption {
      type = types.str;
      default = config.networking.hostName;
      defaultText = lib.literalExpression "config.networking.hostName";
      example = "ftp1";
      description = "Under which name the cluster's description speaks of this host.";
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Open what this host's roles need, and no more: the control port and the passive range for
        everybody at a balancer (at a node, if there are no balancers); the ports of a node for the
        balancers; authd, Redis and NFS for the hosts that use them. For the firewalls of NixOS
        (iptables, nftables), not for firewalld.
      '';
    };

    secrets = {
      nodeTokenFile = secret "node-token" ''
        With it the nodes show authd who they are. Made at the first boot if nodes and authd are
        one host.
      '';
      adminTokenFile = secret "admin-token" ''
        With it administrators use authd's API. Made at the first boot, as
        /var/lib/distributed-ftp-secrets/adminToken, if there is one authd.
      '';
      redisPasswordFile = secret "redis-password" ''
        The password of Redis. Made at the first boot if one host has Redis, authd and the node.
      '';
    };
  };

  # Every role may need the programs at hand: authd hash-password, ftpd --print-settings.
  config = lib.mkIf cfg.enable { environment.systemPackages = [ cfg.package ]; };
}
