# `nix run`: ./dev up with its tools and the built daemons.
{
  lib,
  writeShellApplication,
  coreutils,
  findutils,
  gnugrep,
  gnused,
  nginxStable,
  openssl,
  redis,
  util-linux,
  distributed-ftp,
}:
let
  source = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../dev
      ../deploy/demo
      ../deploy/images.sh
      ../deploy/packages.sh
      ../nginx
    ];
  };
in
writeShellApplication {
  name = "distributed-ftp-demo";
  runtimeInputs = [
    coreutils
    findutils
    gnugrep
    gnused
    nginxStable
    openssl
    redis
    util-linux
  ];
  text = ''
    # ./dev may replace everything in this folder.
    state=''${XDG_RUNTIME_DIR:-''${TMPDIR:-/tmp}}/distributed-ftp-demo
    export DEV_DAEMONS=${distributed-ftp}/bin
    export DEV_STATE=''${DEV_STATE:-$state}
    export DEV_STORAGE=''${DEV_STORAGE:-$PWD/data}
    export DEV_COMMAND=$0
    # Other subcommands talk to the running cluster: `stop ftp2`, `status`.
    if (($# == 0)); then set -- up; fi
    exec bash ${source}/dev "$@"
  '';
}
