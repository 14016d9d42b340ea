# Copies of files that only root can read, for a daemon that reads them again on SIGHUP. systemd's
# credentials do not change after the start, and their list is part of the unit, so that a new user would
# restart it.
{ lib, pkgs }:
let
  # Root owns the directory. Otherwise a compromised daemon could redirect root's writes with a symbolic
  # link.
  copy = pkgs.writeShellScript "distributed-ftp-copy" ''
    set -eu
    directory=$1 group=$2 list=$3
    install -d -m 0755 /run/distributed-ftp
    install -d -m 0750 -g "$group" "$directory"
    while read -r name path; do
      install -m 0440 -g "$group" -- "$path" "$directory/.new"
      # In one step, because the daemon may read the file at any time.
      mv -- "$directory/.new" "$directory/$name"
    done < "$list"
    for file in "$directory"/*; do
      grep -q "^''${file##*/} " "$list" || rm -f -- "$file"
    done
  '';
in
{
  # Name of the directory below /run/distributed-ftp and of the list below /etc.
  name,
  # The group that may read the copies.
  group,
  # [ { name; path; } ], copied in this order.
  files,
}:
rec {
  directory = "/run/distributed-ftp/${name}";
  etc = "distributed-ftp/${name}.files";
  list = lib.concatMapStrings (file: "${file.name} ${file.path}\n") files;
  # Runs as root ("+") before the daemon starts and before SIGHUP.
  command = "+${copy} ${directory} ${group} /etc/${etc}";
}
