# The secrets, with sops-nix: encrypted in secrets.yaml, decrypted under /run/secrets on the hosts that use
# them. A host decrypts with its SSH host key. Without sops-nix, put the same files there by other means.
{ config, lib, ... }:
let
  inherit (config.services.distributedFtp) cluster hostName;
  isNode = cluster.nodes ? ${hostName};
  isAuth = cluster.auth ? ${hostName};
  isRedis = cluster.redis.host == hostName;

  # systemd gives a unit its secrets when it starts. After a change these units restart; a node drains.
  usedBy = units: { restartUnits = units; };
in
{
  sops = lib.mkIf (isNode || isAuth || isRedis) {
    defaultSopsFile = ./secrets.yaml;
    secrets = {
      ftp-redis-password = usedBy (
        lib.optional isRedis "redis-ftp.service"
        ++ lib.optional isAuth "authd.service"
        ++ lib.optional isNode "ftpd.service"
      );
    }
    // lib.optionalAttrs (isNode || isAuth) {
      ftp-node-token = usedBy (lib.optional isAuth "authd.service" ++ lib.optional isNode "ftpd.service");
    }
    // lib.optionalAttrs isAuth {
      # Read again by a reload.
      ftp-user-demo.reloadUnits = [ "authd.service" ];
    };
  };
}
