# Copies of files that root alone can read, for a daemon that reads them again on SIGHUP. systemd's
# credentials are those of the start, and their list is part of the unit: a new user would restart it.
{ lib, pkgs }:
let
  # The directory is root's: the daemon, were it taken over, could otherwise lead root's writes
  # elsewhere by a symbolic link.
  copy = pkgs.writeShellScript "distributed-ftp-copy" ''
    set -eu
    directory=$1 group=$2 list=$3
    install -d -m 0755 /run/distributed-ftp
    install -d -m 0750 -g "$group" "$directory"
    while read -r name path; do
      install -m 0440 -g "$group" -- "$path" "$directory/.new"
      # At once, because the daemon may read it now.
      mv -- "$directory/.new" "$directory/$name"
    done < "$list"
    for file in "$directory"/*; do
      grep -q "^''${file##*/} " "$list" || rm -f -- "$file"
    done
  '';
in
{
  # Directory below /run/distributed-ftp, and the name of the list below /etc.
  name,
  # The group that may read them.
  group,
  # [ { name; path; } ], copied in this order.
  files,
}:
rec {
  directory = "/run/distributed-ftp/${name}";
  etc = "distributed-ftp/${name}.files";
  list = lib.concatMapStrings (file: "${file.name} ${file.path}\n") files;
  # Before the daemon starts, and before SIGHUP; as root ("+").
  command = "+${copy} ${directory} ${group} /etc/${etc}";
}
