# services.distributedFtp.{ftpd,authd}.settings: the daemons' own settings. Typed are those that Nix
# itself computes with; all others pass through, and the daemon checks them when the system is built.
{ lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  inherit (import ./types.nix { inherit lib; }) duration;
  toml = pkgs.formats.toml { };

  setting =
    type: default: description:
    mkOption {
      inherit type default description;
      example = default;
    };
in
{
  options.services.distributedFtp = {
    ftpd.settings = mkOption {
      type = types.submodule {
        freeformType = toml.type;
        options = {
          max_sessions = setting types.ints.positive 10000 "Control connections of a node at once.";
          max_transfers = setting types.ints.positive 1000 "Transfers of a node at once.";
          max_file_operations = setting types.ints.positive 128 "File operations of a node at once.";
          max_listing_memory =
            setting types.ints.unsigned 67108864
              "Bytes that the sorted listings of all sessions of a node take together.";
          idle_timeout = setting duration "5m" "Without a command or a transfer; then the session ends.";
          stall_timeout =
            setting duration "5m"
              "Without a byte in a transfer; then it ends. The balancer waits a minute longer.";
          drain_timeout = setting duration "5m" ''
            How long transfers may go on when a node stops. The unit's stop limit and the balancer's
            reload follow it.
          '';
          create_homes = setting types.bool true ''
            Make a user's home at the first login. On here, because users are declared in another
            place than the storage.
          '';
          transfer_log = mkOption {
            type = types.nullOr types.path;
            default = null;
            example = "/var/log/distributed-ftp/transfers.log";
            description = "One line a transfer in xferlog's format, below /var/log/distributed-ftp; rotated.";
          };
        };
      };
      default = { };
      example = {
        max_sessions_per_address = 20;
        greeting = "Files of Example Ltd.";
      };
      description = ''
        Settings of ftpd, spelled as in its file (`ftpd --print-settings` lists all). What the
        cluster's description says is not set here.
      '';
    };

    authd.settings = mkOption {
      type = types.submodule { freeformType = toml.type; };
      default = { };
      example = {
        throttle_free_failures = 10;
        cache_ttl = "10s";
      };
      description = "Settings of authd, spelled as in its file (`authd --print-settings` lists all).";
    };
  };
}
