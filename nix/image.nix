# An OCI image of one program: `nix build .#image-ftpd && ./result | podman load`.
{
  lib,
  dockerTools,
  daemon,
  version,
}:
let
  name = daemon.meta.mainProgram;
  # User and group ID of the files' owner, as in the NixOS modules. For a storage with another owner run
  # the container with that owner's IDs: `podman run --user 1000:1000`.
  user = "2121:2121";
in
dockerTools.streamLayeredImage {
  inherit name;
  tag = version;
  contents = [ dockerTools.fakeNss ];
  # A new volume gets the owner of the image's directory at the mount point.
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
      # Port 21 would need a capability. The operator chooses the passive ports.
      Env = [
        "FTPD_PORT=2121"
        "FTPD_ROOT=/srv/ftp"
      ];
      ExposedPorts."2121/tcp" = { };
      Volumes."/srv/ftp" = { };
    };
    # The operator names Redis and chooses the passive ports.
    ftp-relay.Env = [ "FTP_RELAY_ADMIN_LISTEN=0.0.0.0:9122" ];
    authd = {
      Env = [ "AUTHD_LISTEN=0.0.0.0:5160" ];
      ExposedPorts."5160/tcp" = { };
    };
  }
  .${name};
}
