# services.distributedFtp: enable, packages, secrets. The other options are in the files beside this one.
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
        File outside the store that holds ${what} in one line. Only root needs to read it: the units get
        it through LoadCredential. ${generated}
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
    ./console.nix
    ./events.nix
    ./backup.nix
  ];

  options.services.distributedFtp = {
    enable = lib.mkEnableOption "the roles of this host in the Distributed FTP cluster";

    package = mkOption {
      type = types.package;
      default = pkgs.distributed-ftp;
      defaultText = lib.literalMD "the package of the flake that the module comes from";
      example = lib.literalExpression "pkgs.distributed-ftp";
      description = "Package that holds ftpd, authd and ftp-relay.";
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
      description = "Name of this host in the cluster's description.";
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Open the ports that this host's roles need, only for the hosts that use them. Balancers (or the
        nodes, if there are no balancers): control port and passive range, for all addresses. Nodes: their
        control port, for the balancers; the passive range, for the balancers and the other nodes. authd,
        Redis and NFS: for the hosts that use them, and authd also for `backup.host` and `console.allowFrom`.
        VRRP, with `cluster.floatingAddress`: between the balancers. Works with NixOS' firewalls (iptables,
        nftables), not with firewalld.
      '';
    };

    secrets = {
      nodeTokenFile = secret "node-token" ''
        The nodes authenticate to authd with this token. Generated at the first boot if node and authd run
        on one host.
      '';
      adminTokenFile = secret "admin-token" ''
        Administrators use authd's API with this token. Generated at the first boot in
        /var/lib/distributed-ftp-secrets/adminToken if there is one authd, and no backups on another host.
      '';
      redisPasswordFile = secret "redis-password" ''
        The password of Redis, on the hosts of Redis, authd, the nodes and ftp-relay (the balancers).
        Generated at the first boot if one host has them all.
      '';
    };
  };

  # For administrators on every host: authd hash-password, ftpd --print-settings.
  config = lib.mkIf cfg.enable { environment.systemPackages = [ cfg.package ]; };
}
