# services.distributedFtp.users and .groups: declared users and groups. authd's API can create more.
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
  # Null: the user's groups decide, then the default.
  perhaps =
    type: example: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit example description;
    };
  list =
    type: example: description:
    mkOption {
      type = types.listOf type;
      default = [ ];
      inherit example description;
    };
  path = types.strMatching "/.*";

  # As in common/src/policy/permission.rs.
  permissions = lib.mapAttrs (_: perhaps types.bool false) {
    list = "See names and sizes.";
    download = "Read files.";
    upload = "Create files.";
    overwrite = "Replace existing files, by upload or rename.";
    append = "Append to and resume existing files.";
    rename = "Rename.";
    delete = "Delete files.";
    mkdir = "Make directories.";
    rmdir = "Remove directories.";
    attributes = "Change permissions and times.";
  };

  directory = types.submodule {
    options = {
      path = mkOption {
        type = path;
        example = "/incoming";
        description = ''
          Path pattern in the user's tree, with `*`, `?` and `[a-z]`; `**` matches any number of
          directories. The rule applies to matching paths and everything below them.
        '';
      };
      # Null: as for the rest of the tree.
      inherit permissions;
    };
  };
  folder = types.submodule {
    options = {
      path = mkOption {
        type = path;
        example = "/shared";
        description = "Path at which the user sees the folder.";
      };
      target = mkOption {
        type = path;
        example = "/teams/sales";
        description = "The folder's directory, relative to the storage.";
      };
    };
  };

  # Null or empty means not set.
  policy = {
    inherit permissions;
    directories = list directory [
      {
        path = "/incoming";
        permissions.delete = false;
      }
    ] "Parts of the tree with other permissions. The first matching rule decides, user before groups.";
    deniedNames =
      list types.str
        [
          "*.exe"
        ]
        "Name patterns that uploads and renames must not use; those of the user and of its groups together.";
    folders =
      list folder
        [
          {
            path = "/shared";
            target = "/teams/sales";
          }
        ]
        ''
          Shared folders: directories of the storage that the user sees in addition to the home. Those of
          the user and of its groups together. A session holds each of them open; nodes have room for 8 per
          user, or for the largest number of a user declared here.
        '';
    limits = {
      sessions = perhaps types.ints.unsigned 10 "Simultaneous sessions of a user on all nodes together.";
      sessionsPerAddress =
        perhaps types.ints.unsigned 10
          "Simultaneous sessions of a user from one address, on all nodes together.";
      transfers = perhaps types.ints.unsigned 50 "Simultaneous transfers of a user on each node.";
    };
    quota = {
      bytes = perhaps types.ints.unsigned 10000000000 "Total size of a user's files, in bytes.";
      files = perhaps types.ints.unsigned 100000 "Number of a user's files and directories.";
    };
    bandwidth = {
      upload = perhaps types.ints.positive 10000000 "Bytes a second of all uploads of a user together.";
      download =
        perhaps types.ints.positive 10000000
          "Bytes a second of all downloads of a user together.";
      sessionUpload = perhaps types.ints.positive 1000000 "Bytes a second of the upload of a session.";
      sessionDownload =
        perhaps types.ints.positive 1000000
          "Bytes a second of the download of a session.";
    };
    uploads =
      perhaps
        (types.enum [
          "direct"
          "atomic"
        ])
        "atomic"
        "Whether an upload is visible under its name from the first byte (`direct`) or when complete (`atomic`).";
    tls = {
      control =
        perhaps types.bool true
          "Whether the login must be encrypted, in addition to `cluster.tls`.";
      data = perhaps types.bool true "Whether transfers and listings must be encrypted.";
      closeNotify =
        perhaps types.bool false
          "Whether an encrypted upload must end with close_notify. Null: ftpd's `tls_close_notify`. Set it to false for clients that never send close_notify, such as .NET's FtpWebRequest.";
    };
    access = {
      allowFrom = perhaps (types.listOf types.str) [
        "198.51.100.0/24"
      ] "Networks from which the user may log in; null for all.";
      denyFrom = perhaps (types.listOf types.str) [
        "198.51.100.7/32"
      ] "Networks from which the user must not log in. Overrides `allowFrom`.";
      hours = perhaps (types.listOf types.str) [
        "Mon-Fri 06:00-20:00"
      ] "Times, in UTC, at which the user may be logged in; null for always.";
    };
  };

  user = types.submodule (
    { name, ... }:
    {
      options = policy // {
        hashedPasswordFile = mkOption {
          type = types.nullOr types.externalPath;
          default = null;
          example = "/run/secrets/distributed-ftp/demo";
          description = ''
            File outside the store, on the hosts that run authd, that holds the output of
            `authd hash-password`. After a change run `systemctl reload authd`.
          '';
        };
        home = mkOption {
          type = path;
          default = "/${name}";
          defaultText = lib.literalExpression ''"/<name>"'';
          example = "/partners/demo";
          description = "The user's root directory, relative to the storage.";
        };
        enabled = switch true "Whether the user can log in.";
        admin = switch false "Whether SITE WHO shows the sessions of all users to this user.";
        certificates =
          list types.str
            [
              "CN=scanner 7,O=Example"
            ]
            "Client certificates accepted instead of the password: subjects as in RFC 4514, keys (`sha256:…`) or alternative names (`email:…`, `URI:…`, `DNS:…`).";
        groups = list types.str [ "partners" ] ''
          Names of groups. Each field that the user does not set comes from the first of these groups that
          sets it.
        '';
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
    description = "Users, by login name.";
  };

  options.services.distributedFtp.groups = mkOption {
    type = types.attrsOf (types.submodule { options = policy; });
    default = { };
    example = lib.literalExpression ''
      {
        partners = {
          permissions.delete = false;
          limits.sessions = 5;
          access.allowFrom = [ "198.51.100.0/24" ];
        };
      }
    '';
    description = ''
      Settings that users share, by group name. Limits, quota and bandwidth apply to each user separately.
      What neither the user nor a group sets is permitted and unlimited.
    '';
  };
}
