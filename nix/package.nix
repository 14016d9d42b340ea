# Both daemons, built and tested once.
{
  lib,
  rustPlatform,
  nginxStable,
  openssl,
  redis,
  curl,
  lftp,
  rclone,
  wget,
  ncftp,
  python3,
  doCheck ? true,
}:
rustPlatform.buildRustPackage {
  pname = "distributed-ftp";
  inherit ((lib.importTOML ../Cargo.toml).workspace.package) version;

  src = lib.fileset.toSource {
    root = ../.;
    # Only what a build or test reads, so that a word in the documentation builds nothing anew.
    fileset = lib.fileset.unions [
      ../Cargo.toml
      ../Cargo.lock
      ../rustfmt.toml
      ../authd
      ../common
      ../SECURITY.md
      ../docs/settings.md
      ../ftpd
      ../fuzz
      ../tests
      (lib.fileset.fileFilter (file: !file.hasExt "nix") ../nginx)
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;

  cargoBuildFlags = [
    "--package"
    "ftpd"
    "--package"
    "authd"
  ];

  inherit doCheck;
  # The tests start both daemons, nginx and Redis, and drive them with foreign clients.
  nativeCheckInputs = [
    nginxStable
    openssl
    redis
    curl
    lftp
    rclone
    wget
    ncftp
    python3
  ];

  meta = {
    description = "Several FTP servers that behave like one";
    license = lib.licenses.mit;
    mainProgram = "ftpd";
    platforms = lib.platforms.linux;
  };
}
