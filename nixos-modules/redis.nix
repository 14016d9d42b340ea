# The role of Redis: sessions, nodes, limits, and the users that were made through authd's API.
{ config, lib, ... }:
let
  cfg = config.services.distributedFtp;
  cluster = import ./cluster.nix { inherit lib config; };
  inherit (cfg.cluster) redis;
in
{
  imports = [ ./common.nix ];

  config = lib.mkIf (cluster.isRedis && redis.address != null) {
    services.redis.servers.ftp = {
      enable = true;
      bind = toString (
        lib.unique [
          redis.address
          "127.0.0.1"
        ]
      );
      inherit (redis) port;
      requirePassFile = cluster.secretFile "redisPassword";
      # API users outlive a restart. All else may be lost: the nodes write it again.
      appendOnly = true;
      save = [ ];
      # Nothing in it can be done without: better refuse a write than drop a lease or a user.
      settings.maxmemory-policy = "noeviction";
    };

    systemd.services.redis-ftp = {
      # It binds an address that the network has to bring.
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "distributed-ftp-secrets.service"
      ];
      unitConfig.StartLimitIntervalSec = 0;
      serviceConfig = {
        Restart = lib.mkForce "always";
        RestartSec = lib.mkForce 2;
      };
    };
  };
}
