# shellcheck shell=bash
# `./dev image`: images of the programs, by podman, buildah or docker.

PROGRAMS=(ftpd ftp-relay authd ftpctl)

is_program() {
  local program
  for program in "${PROGRAMS[@]}"; do [[ $program != "$1" ]] || return 0; done
  return 1
}

workspace_version() { sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1; }

# built_programs PROGRAM…: sets `programs`, the folder of the release build, or IMAGE_BINARIES.
built_programs() {
  programs=${IMAGE_BINARIES:-}
  if [[ ! $programs ]]; then
    need_rust
    cargo build --release --locked --package ftpd --package authd --package ftpctl --bins ||
      fail "the build failed"
    programs=$(target_directory)/release
  fi
}

# source_date: prints the time of the last commit, for files and images that depend on their sources only.
source_date() {
  echo "${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}"
}

# image_builder: prints the program that builds images.
image_builder() {
  local name
  if [[ ${IMAGE_BUILDER:-} ]]; then echo "$IMAGE_BUILDER"; return; fi
  for name in podman buildah docker; do
    command -v "$name" >/dev/null && { echo "$name"; return; }
  done
  return 1
}

# make_images [--compile] [PROGRAM…]
make_images() {
  local program programs context builder version revision date origin=local wanted=() options=()
  while (($#)); do
    case $1 in
      --compile) origin=compiled ;;
      *) is_program "$1" || fail "there is no image of $1; the programs are ${PROGRAMS[*]}"; wanted+=("$1") ;;
    esac
    shift
  done
  ((${#wanted[@]})) || wanted=("${PROGRAMS[@]}")
  builder=$(image_builder) || fail "please install podman, buildah or docker: they build images"
  version=$(workspace_version) date=$(source_date)
  revision=$(git describe --always --dirty --abbrev=40 2>/dev/null) || revision=unknown
  context=.
  if [[ $origin == local ]]; then
    built_programs
    context=$(mktemp -d)
    # shellcheck disable=SC2064 # this folder
    trap "rm -rf '$context'" EXIT
    for program in "${wanted[@]}"; do
      deploy/containers/image-root "$program" "$programs/$program" "$context/$program"
    done
    # The times of files are part of an image.
    find "$context" -exec touch --no-dereference --date="@$date" {} +
  fi
  case $builder in
    # The health check is part of Docker's format only. Layers would keep a copy of the context each time.
    podman | buildah) options=(build --format docker --layers=false --timestamp "$date") ;;
    docker) options=(build --build-arg "SOURCE_DATE_EPOCH=$date") ;;
    *) fail "IMAGE_BUILDER=$builder: expected podman, buildah or docker" ;;
  esac
  # Further options, such as --isolation=chroot where this runs in a container.
  read -ra further <<<"${IMAGE_BUILD_OPTIONS:-}"
  for program in "${wanted[@]}"; do
    "$builder" "${options[@]}" "${further[@]}" --file deploy/containers/Containerfile --target "$program" \
      --build-arg "ORIGIN=$origin" \
      --label "org.opencontainers.image.title=$program" \
      --label "org.opencontainers.image.description=Distributed FTP: $program" \
      --label "org.opencontainers.image.version=$version" \
      --label "org.opencontainers.image.revision=$revision" \
      --label "org.opencontainers.image.licenses=MIT" \
      --label "org.opencontainers.image.created=$(date --utc --date="@$date" +%Y-%m-%dT%H:%M:%SZ)" \
      --tag "distributed-ftp/$program:$version" --tag "distributed-ftp/$program:latest" "$context" >&2 ||
      fail "$builder could not build the image of $program; its message is above"
    echo "distributed-ftp/$program:$version"
  done
}
