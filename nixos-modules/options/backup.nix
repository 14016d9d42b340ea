# services.distributedFtp.backup: a timer that saves what only Redis holds.
{ config, lib, ... }:
let
  cfg = config.services.distributedFtp;
  inherit (lib) mkOption types;
  inherit (import ./types.nix { inherit lib; }) duration;
in
{
  options.services.distributedFtp.backup = {
    enable = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Save users, groups, overrides and blocks regularly, with `ftpctl backup`, on one host. The files hold
        password hashes.
      '';
    };

    host = mkOption {
      type = types.nullOr types.str;
      default =
        let
          hosts = lib.attrNames cfg.cluster.auth;
        in
        if hosts == [ ] then null else lib.head hosts;
      defaultText = lib.literalMD "the first host of `cluster.auth`";
      example = "backend1";
      description = ''
        Name of the host that makes the backups. A host without authd needs `secrets.adminTokenFile`. If it
        has no other role, name its address in `console.allowFrom`.
      '';
    };

    directory = mkOption {
      type = types.strMatching "/[a-zA-Z0-9_./-]+" // {
        description = "absolute path of letters, digits and ._/-";
      };
      default = "/var/lib/distributed-ftp-backup";
      example = "/mnt/backup/ftp";
      description = ''
        Directory of the files `accounts-TIME.json`. It belongs to the user `ftp-backup`; only this user and
        root read it.
      '';
    };

    onCalendar = mkOption {
      type = types.str;
      default = "daily";
      example = "*-*-* 00/6:00:00";
      description = "When backups are made, as in systemd.time(7). One that was missed is made after the boot.";
    };

    randomizedDelay = mkOption {
      type = duration;
      default = "30m";
      example = "0s";
      description = "Greatest random delay of a backup.";
    };

    keep = mkOption {
      type = types.ints.positive;
      default = 30;
      example = 90;
      description = ''
        The number of backups that are kept. Only a backup that succeeded removes older ones, and the newest
        one that is not empty always stays.
      '';
    };
  };
}
