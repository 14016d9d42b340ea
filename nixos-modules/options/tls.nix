# services.distributedFtp.cluster.tls: FTPS, explicit and implicit. The nodes speak it; the balancer
# passes it on.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  file =
    name: what:
    mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      example = "/run/secrets/ftp-${name}.pem";
      description = ''
        File outside the store, on every node, that holds the ${what} in PEM. Only root needs to read
        it. After `systemctl reload ftpd` new connections get a new one; no session is cut.
      '';
    };
in
{
  options.services.distributedFtp.cluster.tls = {
    certificateFile = file "certificate" "certificate chain";
    keyFile = file "key" "key";
    acmeHost = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "ftp.example.org";
      description = ''
        In place of the files, a name in `security.acme.certs` of every node. The nodes are behind a
        balancer: let `dnsProvider` prove the name. What is renewed is read at once, and no session
        notices.
      '';
    };
    required = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = "Whether control and data connections must be encrypted; else clients choose.";
    };
    implicitPort = mkOption {
      type = types.nullOr types.port;
      default = null;
      example = 990;
      description = "A second control port where TLS begins at once, at the balancers and the nodes.";
    };
  };
}
