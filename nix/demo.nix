# `./dev up` with its tools, and the daemons already built, from Nix.
{
  lib,
  writeShellApplication,
  coreutils,
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
      ../nginx
    ];
  };
in
writeShellApplication {
  name = "distributed-ftp-demo";
  runtimeInputs = [
    coreutils
    gnugrep
    gnused
    nginxStable
    openssl
    redis
    util-linux
  ];
  text = ''
    # What is below this folder is ./dev's own.
    state=''${XDG_RUNTIME_DIR:-''${TMPDIR:-/tmp}}/distributed-ftp-demo
    export DEV_DAEMONS=${distributed-ftp}/bin
    export DEV_STATE=''${DEV_STATE:-$state}
    export DEV_STORAGE=''${DEV_STORAGE:-$PWD/data}
    exec bash ${source}/dev up
  '';
}
