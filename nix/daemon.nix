# One program out of the package with all of them, without another build.
{
  lib,
  runCommand,
  distributed-ftp,
  name,
}:
runCommand name
  {
    meta = {
      inherit (distributed-ftp.meta) license platforms;
      description = "${distributed-ftp.meta.description}: ${name}";
      mainProgram = name;
    };
  }
  ''
    mkdir -p $out/bin
    cp ${lib.getExe' distributed-ftp name} $out/bin/
  ''
