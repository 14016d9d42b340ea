# Both daemons, built and tested once.
{
  lib,
  stdenv,
  rustPlatform,
  installShellFiles,
  nginxStable,
  openssl,
  redis,
  curl,
  lftp,
  rclone,
  wget,
  ncftp,
  python3,
  util-linux,
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
      ../bench
      ../common
      ../demo
      ../dev
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
    util-linux
  ];

  # A builder may allow no user namespaces. ./dev test has these tests, and vm-kernel-data-path.
  checkFlags = [ "--skip=own_network::" ];

  nativeBuildInputs = [ installShellFiles ];
  # The programs print their own; a build for another machine cannot run them.
  postInstall = lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    for program in ftpd authd; do
      "$out/bin/$program" --print-manual >"$program.1"
      for shell in bash fish zsh; do
        "$out/bin/$program" --print-completions "$shell" >"$program.$shell"
      done
      installManPage "$program.1"
      installShellCompletion --cmd "$program" --bash "$program.bash" --fish "$program.fish" --zsh "$program.zsh"
    done
  '';

  meta = {
    description = "Several FTP servers that behave like one";
    license = lib.licenses.mit;
    mainProgram = "ftpd";
    platforms = lib.platforms.linux;
  };
}
