# An OCI image of one daemon: `nix build .#image-ftpd && ./result | podman load`.
{
  lib,
  dockerTools,
  daemon,
  version,
}:
let
  name = daemon.meta.mainProgram;
  # The owner of the files, by number as in the NixOS modules. A storage that belongs to another user is
  # mounted with that one's numbers: `podman run --user 1000:1000`.
  user = "2121:2121";
in
dockerTools.streamLayeredImage {
  inherit name;
  tag = version;
  contents = [ dockerTools.fakeNss ];
  # A new volume takes its owner from the directory of the image that it is mounted on.
  fakeRootCommands = lib.optionalString (name == "ftpd") ''
    mkdir -p srv/ftp
    chown ${user} srv/ftp
    chmod 0750 srv/ftp
  '';
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
