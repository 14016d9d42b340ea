# All programs, built and tested once.
{
  lib,
  stdenv,
  rustPlatform,
  installShellFiles,
  testers,
  # Available since nixpkgs 24.11.
  versionCheckHook ? null,
  nginxStable,
  openssl,
  redis,
  curl,
  lftp,
  rclone,
  wget,
  ncftp,
  haproxy,
  strace,
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
    # Only files that the build or the tests read, so that a change of the documentation causes no rebuild.
    # The results of `./dev fuzz` are ignored by git, but without a flake they would be copied.
    fileset =
      lib.fileset.difference
        (lib.fileset.unions [
          ../Cargo.toml
          ../Cargo.lock
          ../ARCHITECTURE.md
          ../rustfmt.toml
          ../authd
          ../bench
          ../common
          ../deploy/compose
          ../deploy/containers
          ../deploy/debian
          ../deploy/demo
          ../deploy/helm
          ../deploy/kubernetes
          ../deploy/images.sh
          ../deploy/packages.sh
          ../deploy/sbom
          ../deploy/systemd
          ../LICENSE
          ../dev
          ../CHANGELOG.md
          ../SECURITY.md
          ../docs/audit.schema.json
          ../docs/doctor.md
          ../docs/metrics.md
          ../docs/settings.md
          ../ftpctl
          ../ftpd
          ../fuzz
          ../deploy/monitoring
          ../docs/troubleshooting.md
          ../nixos-modules/auth.nix
          ../nixos-modules/hardening.nix
          ../nixos-modules/node.nix
          ../nixos-modules/options/settings.nix
          ../nixos-modules/relay.nix
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
    "--package"
    "ftpctl"
  ];

  inherit doCheck;
  # In the release profile, link-time optimisation of the test programs takes ten times as long as the
  # tests.
  checkType = "debug";
  # The tests start both daemons, nginx and Redis, and use real FTP clients.
  nativeCheckInputs = [
    nginxStable
    openssl
    redis
    curl
    lftp
    rclone
    wget
    ncftp
    haproxy
    strace
    (python3.withPackages (packages: [ packages.pyyaml ]))
    util-linux
  ];

  # A builder may forbid user namespaces. `./dev test` runs these tests, and so does vm-kernel-data-path.
  checkFlags = [ "--skip=own_network::" ];

  nativeBuildInputs = [ installShellFiles ];
  # The programs print their manuals and completions; a cross build cannot run them.
  postInstall = lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    for page in ftpd:8 ftpd:toml.5 ftp-relay:8 ftp-relay:toml.5 authd:8 authd:toml.5; do
      program=''${page%:*} page=''${page/:/.}
      "$out/bin/$program" --print-manual "''${page%.*}" >"$page"
      installManPage "$page"
    done
    for page in authd-hash-password authd-hash-token authd-health ftpd-health ftp-relay-health; do
      "$out/bin/''${page%%-h*}" --print-manual "$page" >"$page.1"
      installManPage "$page.1"
    done
    "$out/bin/ftpctl" manual >ftpctl.1
    installManPage ftpctl.1
    for program in ftpd ftp-relay authd; do
      for shell in bash fish zsh; do
        "$out/bin/$program" --print-completions "$shell" >"$program.$shell"
      done
      installShellCompletion --cmd "$program" --bash "$program.bash" --fish "$program.fish" --zsh "$program.zsh"
    done
    for shell in bash fish zsh; do
      "$out/bin/ftpctl" completions "$shell" >"ftpctl.$shell"
    done
    installShellCompletion --cmd ftpctl --bash ftpctl.bash --fish ftpctl.fish --zsh ftpctl.zsh
  '';

  # The installed ftpd prints its version; passthru.tests checks the others.
  doInstallCheck = versionCheckHook != null;
  nativeInstallCheckInputs = lib.optional (versionCheckHook != null) versionCheckHook;

  passthru.tests = {
    version-ftpd = testers.testVersion { package = finalAttrs.finalPackage; };
    version-authd = testers.testVersion {
      package = finalAttrs.finalPackage;
      command = "authd --version";
    };
    version-ftpctl = testers.testVersion {
      package = finalAttrs.finalPackage;
      command = "ftpctl --version";
    };
    version-ftp-relay = testers.testVersion {
      package = finalAttrs.finalPackage;
      command = "ftp-relay --version";
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
  # Set if Cargo.toml has the project's address.
  // lib.optionalAttrs (workspace ? repository) {
    homepage = workspace.repository;
    changelog = "${workspace.repository}/blob/v${workspace.version}/CHANGELOG.md";
  };
})
