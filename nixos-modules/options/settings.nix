# services.distributedFtp.{ftpd,authd,relay}.settings: settings of the daemons. Those that the modules compute
# with have a type here. All others pass through, and the daemon checks them when the system is built.
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
          max_file_operations = setting types.ints.positive 128 "Short file operations of a node at once.";
          max_relayed =
            setting types.ints.unsigned 2000
              "Data connections that a node carries to other nodes at once.";
          passive_block_ports =
            setting (types.ints.between 1 65535) 5
              "Ports of a block: the nodes lease the passive range in blocks of this size. The same on all nodes.";
          max_listing_memory =
            setting types.ints.unsigned 67108864
              "Memory in bytes of all sorted listings of a node together.";
          idle_timeout =
            setting duration "5m"
              "Time without a command or a transfer after which a session ends.";
          stall_timeout =
            setting duration "5m"
              "Time without a byte after which a transfer ends. The balancer's limit is a minute longer.";
          drain_timeout = setting duration "5m" ''
            Time that transfers may go on when a node stops. The modules derive the unit's stop limit and the
            balancer's reload limit from it.
          '';
          create_homes = setting types.bool true ''
            Create a missing home at the user's first login. The default differs from ftpd's, because users
            are declared on the authd hosts, away from the storage.
          '';
          transfer_log = mkOption {
            type = types.nullOr types.path;
            default = null;
            example = "/var/log/distributed-ftp/transfers.log";
            description = ''
              A file below /var/log/distributed-ftp with one line a transfer, in xferlog's format. The module
              rotates it.
            '';
          };
        };
      };
      default = { };
      example = {
        max_sessions_per_address = 20;
        greeting = "Files of Example Ltd.";
      };
      description = ''
        Settings of ftpd, with the keys of ftpd.toml(5); docs/settings.md lists them all. Settings that follow
        from `services.distributedFtp.cluster` cannot be set here.
      '';
    };

    relay.settings = mkOption {
      type = types.submodule {
        freeformType = toml.type;
        options = {
          max_relayed = setting types.ints.positive 10000 "Data connections that a balancer carries at once.";
          max_control_connections =
            setting types.ints.positive 10000
              "With `controlPath = \"relay\"`: control connections that a balancer carries at once.";
          drain_timeout = setting duration "10s" ''
            Time that data connections may go on when ftp-relay stops or restarts. The default is shorter than
            ftp-relay's: until then this balancer accepts no data connection. What is cut is never confirmed,
            and clients resume it.
          '';
        };
      };
      default = { };
      example = {
        map_refresh = "2s";
      };
      description = ''
        Settings of ftp-relay, with the keys of ftp-relay.toml(5); docs/settings.md lists them all. Settings
        that follow from `services.distributedFtp.cluster` cannot be set here.
      '';
    };

    authd.settings = mkOption {
      type = types.submodule { freeformType = toml.type; };
      default = { };
      example = {
        throttle_free_failures = 10;
        cache_ttl = "10s";
      };
      description = "Settings of authd, with the keys of authd.toml(5); docs/settings.md lists them all.";
    };
  };
}
