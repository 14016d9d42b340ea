# Both daemons, built and tested once.
{
  lib,
  stdenv,
  rustPlatform,
  installShellFiles,
  testers,
  # Came with nixpkgs 24.11.
  versionCheckHook ? null,
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
let
  workspace = (lib.importTOML ../Cargo.toml).workspace.package;
in
rustPlatform.buildRustPackage (finalAttrs: {
  pname = "distributed-ftp";
  inherit (workspace) version;

  src = lib.fileset.toSource {
    root = ../.;
    # Only what a build or test reads, so that a word in the documentation builds nothing anew.
    # What `./dev fuzz` leaves there is known to git as ignored; without a flake it would be copied, too.
    fileset =
      lib.fileset.difference
        (lib.fileset.unions [
          ../Cargo.toml
          ../Cargo.lock
          ../rustfmt.toml
          ../authd
          ../bench
          ../common
          ../deploy/demo
          ../dev
          ../SECURITY.md
          ../docs/metrics.md
          ../docs/settings.md
          ../ftpd
          ../fuzz
          ../nixos-modules/monitoring
          ../nixos-modules/options/settings.nix
          ../tests
          ../nginx/check.nix
          (lib.fileset.fileFilter (file: !file.hasExt "nix") ../nginx)
        ])
        (
          lib.fileset.unions [
            (lib.fileset.maybeMissing ../fuzz/target)
            (lib.fileset.maybeMissing ../fuzz/artifacts)
          ]
        );
  };
  cargoLock.lockFile = ../Cargo.lock;

  cargoBuildFlags = [
    "--package"
    "ftpd"
    "--package"
    "authd"
  ];

  inherit doCheck;
  # With the profile of the build, link-time optimisation of every test program takes ten times as long
  # as the tests themselves.
  checkType = "debug";
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
    for page in ftpd.8 ftpd.toml.5 authd.8 authd.toml.5 authd-hash-password.1; do
      "$out/bin/''${page%%[.-]*}" --print-manual "''${page%.*}" >"$page"
      installManPage "$page"
    done
    for program in ftpd authd; do
      for shell in bash fish zsh; do
        "$out/bin/$program" --print-completions "$shell" >"$program.$shell"
      done
      installShellCompletion --cmd "$program" --bash "$program.bash" --fish "$program.fish" --zsh "$program.zsh"
    done
  '';

  # The installed ftpd runs and says its version; authd is asked in passthru.tests.
  doInstallCheck = versionCheckHook != null;
  nativeInstallCheckInputs = lib.optional (versionCheckHook != null) versionCheckHook;

  passthru.tests = {
    version-ftpd = testers.testVersion { package = finalAttrs.finalPackage; };
    version-authd = testers.testVersion {
      package = finalAttrs.finalPackage;
      command = "authd --version";
    };
  }
  // import ../vm-tests {
    inherit lib testers;
    package = finalAttrs.finalPackage;
  };

  meta = {
    description = "Several FTP servers that behave like one";
    license = lib.licenses.mit;
    mainProgram = "ftpd";
    platforms = lib.platforms.linux;
  }
  # Cargo.toml says where the project is; a copy that is nowhere has no page.
  // lib.optionalAttrs (workspace ? repository) {
    homepage = workspace.repository;
    changelog = "${workspace.repository}/blob/v${workspace.version}/CHANGELOG.md";
  };
})
