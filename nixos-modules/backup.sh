#!/usr/bin/env bash
# Saves the accounts of the API, and removes old backups. The NixOS module runs it in a timer's unit.
#   backup.sh DIRECTORY KEEP TOKEN_FILE URL…
# KEEP is the number of backups that stay, URL an authd. Exit status: that of ftpctl.
set -euo pipefail
directory=$1 keep=$2 token=$3
shift 3

# authd and its Redis may be about to restart: each authd is asked six times, 10 s apart.
attempts=6
pause=10
unreachable=3

cd "$directory"
# What a backup left behind that was killed. ftpctl gives a file its name when it is complete.
rm -f -- accounts-*.json.*.tmp

new=accounts-$(date -u +%Y-%m-%dT%H%M%SZ).json
save() {
  local attempt url status=$unreachable
  for attempt in $(seq "$attempts"); do
    for url in "$@"; do
      status=0
      ftpctl --url "$url" --token-file "$token" backup "$new" || status=$?
      if [ "$status" -ne "$unreachable" ]; then
        return "$status"
      fi
    done
    [ "$attempt" -eq "$attempts" ] || sleep "$pause"
  done
  return "$status"
}
status=0
save "$@" || status=$?
if [ "$status" -ne 0 ]; then
  echo "no backup was made; the earlier ones stay" >&2
  exit "$status"
fi
# The new name must be on the disk before older files go.
sync -- .

holds_accounts() {
  jq --exit-status '[.users, .groups, .overrides, .blocks] | any(length > 0)' -- "$1" >/dev/null
}

# A Redis that lost its data gives empty backups. They must not displace the last one with accounts.
has_good=false
kept=0
backups=(accounts-*.json)
for ((position = ${#backups[@]} - 1; position >= 0; position--)); do
  file=${backups[position]}
  if [ "$kept" -lt "$keep" ]; then
    kept=$((kept + 1))
    if ! $has_good && holds_accounts "$file"; then
      has_good=true
    fi
  elif ! $has_good && holds_accounts "$file"; then
    has_good=true
    echo "the newer backups are empty: $file stays" >&2
  else
    rm -- "$file"
  fi
done
