# An OCI image of one daemon: `nix build .#image-ftpd && ./result | podman load`.
{
  lib,
  dockerTools,
  daemon,
  version,
}:
let
  name = daemon.meta.mainProgram;
  # Any mounted storage belongs to somebody: ftpd runs as that user, by number (`--user 2121:2121`).
  # The numbers here are those of the NixOS modules.
  user = "2121:2121";
in
dockerTools.streamLayeredImage {
  inherit name;
  tag = version;
  contents = [ dockerTools.fakeNss ];
  config = {
    Entrypoint = [ (lib.getExe daemon) ];
    User = user;
    StopSignal = "SIGTERM";
    Labels."org.opencontainers.image.licenses" = "MIT";
  }
  // {
    ftpd = {
      # Port 21 needs a capability; the passive ports are the operator's choice.
      Env = [
        "FTPD_PORT=2121"
        "FTPD_ROOT=/srv/ftp"
      ];
      ExposedPorts."2121/tcp" = { };
      Volumes."/srv/ftp" = { };
    };
    authd = {
      Env = [ "AUTHD_LISTEN=0.0.0.0:5160" ];
      ExposedPorts."5160/tcp" = { };
    };
  }
  .${name};
}
