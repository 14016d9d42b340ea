# A certificate for lb that clients trust.
{ pkgs, ... }:
let
  # For tests only: keep a real key out of the store.
  certificate = pkgs.runCommand "certificate" { nativeBuildInputs = [ pkgs.openssl ]; } ''
    mkdir $out
    ${pkgs.openssl}/bin/openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
      -days 3650 -subj /CN=lb -addext subjectAltName=DNS:lb -keyout $out/key.pem -out $out/cert.pem
  '';
in
{
  services.distributedFtp.cluster.tls = {
    certificateFile = "/etc/ftp-tls/cert.pem";
    keyFile = "/etc/ftp-tls/key.pem";
  };
  environment.etc = {
    "ftp-tls/cert.pem".source = "${certificate}/cert.pem";
    "ftp-tls/key.pem" = {
      source = "${certificate}/key.pem";
      mode = "0400";
    };
  };
  security.pki.certificateFiles = [ "${certificate}/cert.pem" ];
}
