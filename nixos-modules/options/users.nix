# services.distributedFtp.users and .groups: who may log in, and what they may do. More can be made
# through authd's API.
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
  # What a user does not set is its groups' to set.
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

  # As in common/src/auth_api.rs.
  permissions = lib.mapAttrs (_: perhaps types.bool false) {
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

  directory = types.submodule {
    options = {
      path = mkOption {
        type = path;
        example = "/incoming";
        description = ''
          A place in the user's tree; its parts may hold `*`, `?` and `[a-z]`, and `**` stands for any
          number of directories. The rule holds for what this matches and everything below.
        '';
      };
      # Null is as everywhere.
      inherit permissions;
    };
  };
  folder = types.submodule {
    options = {
      path = mkOption {
        type = path;
        example = "/shared";
        description = "Where the user sees it.";
      };
      target = mkOption {
        type = path;
        example = "/teams/sales";
        description = "Where it is, relative to the storage.";
      };
    };
  };

  # Each is null or empty where it is not set.
  policy = {
    inherit permissions;
    directories =
      list directory
        [
          {
            path = "/incoming";
            permissions.delete = false;
          }
        ]
        "Parts of the tree with other permissions; the first that fits decides, a user's before a group's.";
    deniedNames =
      list types.str
        [
          "*.exe"
        ]
        "Names, with wildcards, that no upload and no rename may give; a user's and its groups' together.";
    folders =
      list folder
        [
          {
            path = "/shared";
            target = "/teams/sales";
          }
        ]
        ''
          Directories of the storage that the tree shows beside the home, a user's and its groups'. A session
          holds each open: nodes have room for 8 of a user, or for as many as a user here has.
        '';
    limits = {
      sessions = perhaps types.ints.unsigned 10 "Sessions of a user at once, over all nodes.";
      sessionsPerAddress = perhaps types.ints.unsigned 10 "The same, from one address.";
      transfers = perhaps types.ints.unsigned 50 "Transfers of a user at once, on each node.";
    };
    quota = {
      bytes = perhaps types.ints.unsigned 10000000000 "What a user's files may take, in bytes.";
      files = perhaps types.ints.unsigned 100000 "How many files and directories a user may have.";
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
    uploads = perhaps (types.enum [
      "direct"
      "atomic"
    ]) "atomic" "Whether an upload has its name from the first byte on, or when it is complete.";
    tls = {
      control =
        perhaps types.bool true
          "Whether the login must be encrypted, beside what `cluster.tls` says.";
      data = perhaps types.bool true "Whether transfers and listings must be encrypted.";
      closeNotify =
        perhaps types.bool false
          "Whether an encrypted upload must end with close_notify; otherwise as `tls_close_notify` of ftpd says. Off for clients that never send it, such as .NET's FtpWebRequest.";
    };
    access = {
      allowFrom = perhaps (types.listOf types.str) [
        "198.51.100.0/24"
      ] "The only networks to log in from.";
      denyFrom = perhaps (types.listOf types.str) [
        "198.51.100.7/32"
      ] "Networks to log in from never, also where `allowFrom` has them.";
      hours = perhaps (types.listOf types.str) [
        "Mon-Fri 06:00-20:00"
      ] "The only times to log in, in UTC.";
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
            File outside the store, on the hosts that run authd, that holds what
            `authd hash-password` printed. `systemctl reload authd` reads a new one.
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
        admin = switch false "Whether the user sees everybody's sessions with SITE WHO.";
        certificates =
          list types.str
            [
              "CN=scanner 7,O=Example"
            ]
            "Client certificates that stand in for the password: subjects by RFC 4514, keys (`sha256:…`) or alternative names (`email:…`, `URI:…`, `DNS:…`).";
        groups = list types.str [ "partners" ] ''
          Groups of this description. What the user does not set, down to the single field, is as the
          first of them says that sets it.
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
    description = "Users, by the name that they log in with.";
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
      What users have in common, by the name that users give in `groups`. Limits, quota and bandwidth
      are each user's own. Where neither the user nor a group sets something, it is granted and not
      limited.
    '';
  };
}
