# services.distributedFtp.{administrators,audit,console}: who may steer the cluster, the trail of what they
# and the clients did, and the page.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  inherit (import ./types.nix { inherit lib; }) duration network;

  administrator = types.submodule {
    options = {
      role = mkOption {
        type = types.enum [
          "administrator"
          "viewer"
        ];
        default = "administrator";
        example = "viewer";
        description = "A viewer sees everything and changes nothing.";
      };
      tokenSha256 = mkOption {
        type = types.strMatching "[0-9a-f]{64}" // {
          description = "64 hexadecimal digits";
        };
        example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        description = ''
          SHA-256 of the token, as `authd hash-token` prints it. The store is readable by everyone, so the
          token must be random and long: `openssl rand -base64 32`.
        '';
      };
    };
  };
in
{
  options.services.distributedFtp = {
    administrators = mkOption {
      type = types.attrsOf administrator;
      default = { };
      example.ann = {
        role = "administrator";
        tokenSha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
      };
      description = ''
        Administrators by name, beside `admin`, who has the token of `secrets.adminTokenFile`. They use
        `ftpctl`, authd's API and the page. A change reloads authd.
      '';
    };

    audit = {
      log = mkOption {
        type = types.nullOr (
          types.enum [
            "journald"
            "stderr"
            "file"
          ]
        );
        default = null;
        example = "journald";
        description = ''
          Where ftpd and authd write the audit trail, one line of JSON for each login, transfer, change,
          refusal and administrative action. `journald`: with the identifiers ftpd-audit and authd-audit.
          `stderr`: beside the log. `file`: /var/log/distributed-ftp/audit.log on the nodes and
          /var/log/authd/audit.log on the hosts of authd; the module rotates both. null: no trail outside
          Redis.
        '';
      };
      records = mkOption {
        type = types.ints.unsigned;
        default = 20000;
        example = 100000;
        description = ''
          The number of newest records that Redis keeps for `ftpctl audit`, `ftpctl problems` and the page,
          about 600 bytes each. 0: none.
        '';
      };
    };

    console = {
      enable = mkOption {
        type = types.bool;
        default = true;
        example = false;
        description = ''
          Serve the page for operators at `/` of authd's address. Administrators log in with their name and
          token.
        '';
      };
      session = mkOption {
        type = duration;
        default = "12h";
        example = "1h";
        description = "The time after which a login to the page ends.";
      };
      allowFrom = mkOption {
        type = types.listOf network;
        default = [ ];
        example = [ "10.0.9.0/24" ];
        description = ''
          Addresses and networks for which `openFirewall` opens authd's port beside the nodes, so that
          browsers and `ftpctl` reach it. authd speaks HTTP without TLS: name a management network or the
          host of an HTTPS proxy.
        '';
      };
    };
  };
}
