# Backups: a timer on one host saves what only Redis holds, through authd's API.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (pkgs.stdenv) buildPlatform hostPlatform;
  cfg = config.services.distributedFtp;
  cluster = import ./cluster.nix { inherit lib config; };
  inherit (cfg) backup;

  token = cluster.secretFile "adminToken";
  # The host's own authd first: it needs no network.
  own = cfg.cluster.auth.${cluster.hostName}.address or null;
  urls =
    let
      isOwn = url: own != null && lib.hasPrefix "http://${cluster.bracketed own}:" url;
      parts = lib.partition isOwn cluster.authUrls;
    in
    parts.right ++ parts.wrong;

  # The build runs systemd's own check of the times.
  checkedTimes = pkgs.runCommand "ftp-backup-times" { } ''
    ${lib.getExe' pkgs.systemd "systemd-analyze"} calendar ${lib.escapeShellArg backup.onCalendar}
    touch $out
  '';
in
{
  imports = [ ./common.nix ];

  config = lib.mkIf (cluster.isBackup && token != null) {
    users.users.ftp-backup = {
      isSystemUser = true;
      description = "Backups of Distributed FTP";
      group = "ftp-backup";
    };
    users.groups.ftp-backup = { };

    system.checks = lib.optional (buildPlatform.canExecute hostPlatform) checkedTimes;

    systemd.tmpfiles.settings.distributed-ftp-backup.${backup.directory}.d = {
      mode = "0700";
      user = "ftp-backup";
      group = "ftp-backup";
    };

    systemd.timers.ftp-backup = {
      description = "Backups of Distributed FTP";
      wantedBy = [ "timers.target" ];
      timerConfig = {
        OnCalendar = backup.onCalendar;
        RandomizedDelaySec = backup.randomizedDelay;
        Persistent = true;
      };
    };

    systemd.services.ftp-backup = {
      description = "Backup of the accounts of Distributed FTP";
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "authd.service"
        "distributed-ftp-secrets.service"
      ];
      path = [
        cfg.package
        pkgs.coreutils
        pkgs.jq
      ];
      unitConfig.RequiresMountsFor = backup.directory;
      serviceConfig = import ./hardening.nix // {
        Type = "oneshot";
        ExecStart = toString (
          [
            pkgs.runtimeShell
            "${./backup.sh}"
            backup.directory
            backup.keep
            "%d/admin-token"
          ]
          ++ urls
        );
        LoadCredential = "admin-token:${token}";
        User = "ftp-backup";
        Group = "ftp-backup";
        ReadWritePaths = backup.directory;
        # Longer than the attempts to reach authd take.
        TimeoutStartSec = "15min";
      };
    };
  };
}
