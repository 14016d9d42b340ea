# Generates, at the first boot, secrets that only this host needs and that the operator did not set.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cluster = import ./cluster.nix { inherit lib config; };
  cfg = config.services.distributedFtp;

  isNeededHere = secret: lib.elem cluster.hostName cluster.users.${secret};
  generated = lib.filter (secret: isNeededHere secret && cluster.isGenerated secret) (
    lib.attrNames cluster.users
  );
in
{
  config = lib.mkIf (cfg.enable && generated != [ ]) {
    systemd.services.distributed-ftp-secrets = {
      description = "Secrets of Distributed FTP, at the first boot";
      wantedBy = [ "multi-user.target" ];
      before = [
        "ftpd.service"
        "authd.service"
        "redis-ftp.service"
        "grafana.service"
      ];
      requiredBy =
        lib.optional cluster.isNode "ftpd.service"
        ++ lib.optional cluster.isAuth "authd.service"
        ++ lib.optional cluster.isRedis "redis-ftp.service"
        ++ lib.optional (lib.elem "grafanaSecretKey" generated) "grafana.service";
      path = [ pkgs.coreutils ];
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        StateDirectory = "distributed-ftp-secrets";
        StateDirectoryMode = "0700";
        UMask = "0077";
        ProtectSystem = "strict";
        ProtectHome = true;
        PrivateNetwork = true;
        PrivateTmp = true;
        NoNewPrivileges = true;
      };
      script = ''
        cd "$STATE_DIRECTORY"
        for secret in ${toString generated}; do
          if [ ! -s "$secret" ]; then
            # Renamed into place, so that a power failure leaves a whole file or none.
            head -c 32 /dev/urandom | base64 > "$secret.new"
            sync "$secret.new"
            mv "$secret.new" "$secret"
          fi
        done
      '';
    };
  };
}
