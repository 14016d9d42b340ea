# The secrets, with sops-nix: encrypted in secrets.yaml, and decrypted under /run/secrets on the hosts that
# use them. A host decrypts with its SSH host key. Without sops-nix, create the same files by other means.
{ config, lib, ... }:
let
  inherit (config.services.distributedFtp) cluster hostName;
  isNode = cluster.nodes ? ${hostName};
  isAuth = cluster.auth ? ${hostName};
  isRedis = cluster.redis.host == hostName;
  # ftp-relay reads from Redis which node owns a passive port.
  isBalancer = cluster.balancers ? ${hostName};

  # systemd passes a unit its secrets when the unit starts. After a change these units restart; a node drains
  # first.
  usedBy = units: { restartUnits = units; };
in
{
  sops = lib.mkIf (isNode || isAuth || isRedis || isBalancer) {
    defaultSopsFile = ./secrets.yaml;
    secrets = {
      ftp-redis-password = usedBy (
        lib.optional isRedis "redis-ftp.service"
        ++ lib.optional isAuth "authd.service"
        ++ lib.optional isNode "ftpd.service"
        ++ lib.optional isBalancer "ftp-relay.service"
      );
    }
    // lib.optionalAttrs (isNode || isAuth) {
      ftp-node-token = usedBy (lib.optional isAuth "authd.service" ++ lib.optional isNode "ftpd.service");
    }
    // lib.optionalAttrs isAuth {
      # A reload reads it again.
      ftp-user-demo.reloadUnits = [ "authd.service" ];
    };
  };
}
