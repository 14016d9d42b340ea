# The Redis role: sessions, nodes, limits, and the users of authd's API.
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
      # API users must survive a restart. The nodes write everything else again.
      appendOnly = true;
      save = [ ];
      # No key may be evicted: refuse a write rather than drop a lease or a user.
      settings.maxmemory-policy = "noeviction";
    };

    systemd.services.redis-ftp = {
      # Redis binds an address that exists only once the network is up.
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
