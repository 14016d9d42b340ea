# shellcheck shell=bash
# `./dev package`: Debian packages of the programs.

make_packages() {
  local programs output=${1:-}
  command -v dpkg-deb >/dev/null || fail "please install dpkg: it makes Debian packages"
  command -v objcopy >/dev/null || fail "please install binutils"
  built_programs
  if [[ ! $output ]]; then
    need_rust
    output=$(target_directory)/packages
  fi
  deploy/debian/build "$programs" "$output" "$(workspace_version)" "$(source_date)" ||
    fail "the packages were not made; the message is above"
}
