# services.distributedFtp.users: who may log in. More can be made through authd's API.
{ lib, ... }:
let
  inherit (lib) mkOption types;

  switch =
    default: description:
    mkOption {
      type = types.bool;
      inherit default description;
      example = !default;
    };
  limit =
    description:
    mkOption {
      type = types.nullOr types.ints.unsigned;
      default = null;
      example = 10;
      inherit description;
    };

  # As in common/src/auth_api.rs.
  permissions = lib.mapAttrs (_: switch true) {
    list = "See names and sizes.";
    download = "Read files.";
    upload = "Write files that do not exist yet.";
    overwrite = "Write or rename over files that exist.";
    append = "Go on with files that exist.";
    rename = "Rename.";
    delete = "Delete files.";
    mkdir = "Make directories.";
    rmdir = "Remove directories.";
    attributes = "Change permissions and times.";
  };

  user = types.submodule (
    { name, ... }:
    {
      options = {
        hashedPasswordFile = mkOption {
          type = types.nullOr types.externalPath;
          default = null;
          example = "/run/secrets/distributed-ftp/demo";
          description = ''
            File outside the store, on the hosts that run authd, that holds what
            `authd hash-password` printed. Read when authd starts.
          '';
        };
        home = mkOption {
          type = types.strMatching "/.*";
          default = "/${name}";
          defaultText = lib.literalExpression ''"/<name>"'';
          example = "/partners/demo";
          description = "The user's root directory, relative to the storage.";
        };
        enabled = switch true "Whether the user can log in.";
        admin = switch false "Whether the user sees everybody's sessions with SITE WHO.";
        uploads = mkOption {
          type = types.enum [
            "direct"
            "atomic"
          ];
          default = "direct";
          example = "atomic";
          description = "Whether an upload has its name from the first byte on, or when it is complete.";
        };
        inherit permissions;
        tls = {
          control = switch false "Whether the user's login must be encrypted, beside what `cluster.tls` says.";
          data = switch false "Whether the user's transfers and listings must be encrypted.";
        };
        limits = {
          sessions = limit "Sessions of the user at once, over all nodes; null is no limit.";
          sessionsPerAddress = limit "The same, from one address.";
        };
      };
    }
  );
in
{
  options.services.distributedFtp.users = mkOption {
    type = types.attrsOf user;
    default = { };
    example = lib.literalExpression ''
      {
        demo = {
          hashedPasswordFile = "/run/secrets/demo";
          home = "/demo";
          permissions.delete = false;
        };
      }
    '';
    description = "Users, by the name that they log in with.";
  };
}
