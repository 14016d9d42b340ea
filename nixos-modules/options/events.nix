# services.distributedFtp.events: the receivers of events, which become `events_file`.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  inherit (import ./types.nix { inherit lib; }) duration;

  kind = types.enum [
    "upload"
    "append"
    "rename"
    "delete"
    "download"
    "login"
  ];
  texts =
    example: description:
    mkOption {
      type = types.listOf types.str;
      default = [ ];
      inherit example description;
    };

  # Which events a receiver gets.
  filter = {
    events = mkOption {
      type = types.nonEmptyListOf kind;
      default = [ "upload" ];
      example = [
        "upload"
        "append"
      ];
      description = ''
        The kinds of events: `upload` (STOR, STOU), `append` (APPE), `rename` (RNTO), `delete` (DELE, RMD,
        RMDA), `download` (RETR), `login`.
      '';
    };
    users = texts [ "partner-*" ] "Patterns of login names. Empty: all users.";
    groups = texts [
      "partners"
    ] "Groups whose members' events count. Empty: users of all groups and of none.";
    paths = texts [ "/in/*.csv" ] ''
      Patterns of paths as the user sees them, each with everything below it. Empty: all paths.
    '';
    retryFor = mkOption {
      type = duration;
      default = "24h";
      example = "3d";
      description = "The age at which an event is given up and becomes a dead letter.";
    };
  };

  timeout =
    default:
    mkOption {
      type = duration;
      inherit default;
      example = "30s";
      description = "The time for one attempt.";
    };
  concurrency =
    default:
    mkOption {
      type = types.ints.between 1 64;
      inherit default;
      example = 8;
      description = "Attempts at the same time, for different paths.";
    };

  webhook.options = filter // {
    url = mkOption {
      type = types.strMatching "https?://.+";
      example = "https://imports.example.com/ftp";
      description = "Where the events are sent. `http` only to a loopback address, or with `allowHttp`.";
    };
    allowHttp = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = "Whether events may be sent without TLS.";
    };
    secretFile = mkOption {
      type = types.externalPath;
      example = "/run/secrets/imports";
      description = ''
        File outside the store, on every node, with the secret of the signature in one line. Only root needs
        to read it. After a change run `systemctl reload ftpd`.
      '';
    };
    caFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/etc/ssl/imports.pem";
      description = "Authorities that the receiver's certificate may come from. null: those of the system.";
    };
    timeout = timeout "10s";
    concurrency = concurrency 4;
  };

  stream.options = filter // {
    entries = mkOption {
      type = types.ints.between 1 100000000;
      default = 100000;
      example = 1000000;
      description = "The number of newest entries that the stream keeps, about 700 bytes each in Redis.";
    };
  };

  command.options = filter // {
    program = mkOption {
      type = types.path;
      example = lib.literalExpression ''"''${pkgs.scan-upload}/bin/scan-upload"'';
      description = "The program's absolute path, which must not be on the storage.";
    };
    arguments = texts [ "--quarantine" ] "Its arguments, which are the same for all events.";
    timeout = timeout "1m";
    concurrency = concurrency 1;
  };
in
{
  options.services.distributedFtp.events = {
    webhooks = mkOption {
      type = types.attrsOf (types.submodule webhook);
      default = { };
      example.imports = {
        url = "https://imports.example.com/ftp";
        secretFile = "/run/secrets/imports";
      };
      description = ''
        Receivers that are told by HTTP when an upload is complete, by name. Deliveries are remembered under
        the name: a receiver with a new one gets the events that still wait. A change reloads the nodes; the
        first receiver of a cluster restarts them.
      '';
    };
    stream = mkOption {
      type = types.nullOr (types.submodule stream);
      default = null;
      example.entries = 1000000;
      description = "Events in the Redis stream `ftp:events`, as the receiver `stream`.";
    };
    commands = mkOption {
      type = types.attrsOf (types.submodule command);
      default = { };
      example.scan.program = "/run/current-system/sw/bin/scan-upload";
      description = ''
        Programs that a node runs for each event, by name. They run as the user `distributed-ftp` in the
        sandbox of `ftpd.service`: they may write only below the storage's root and in their /tmp, and share
        the unit's limits of memory and tasks. A program that needs more can hand the event to a service of
        its own.
      '';
    };
  };
}
