# services.distributedFtp.cluster.tls: FTPS, explicit and implicit. The nodes do TLS; the balancer forwards
# the bytes.
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
        File outside the store, on every node, that holds the ${what} in PEM form. Only root needs to read
        it. After a change run `systemctl reload ftpd`: new connections use the new one, and no session ends.
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
        Name in `security.acme.certs` of every node, instead of the files. The nodes are behind a balancer,
        so use a DNS challenge (`dnsProvider`). The nodes load a renewed certificate at once, and no
        session ends.
      '';
    };
    required = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = "Whether control and data connections must be encrypted. Otherwise clients choose.";
    };
    implicitPort = mkOption {
      type = types.nullOr types.port;
      default = null;
      example = 990;
      description = "Additional control port for implicit TLS, on the balancers and the nodes.";
    };
  };
}
