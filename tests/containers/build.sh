#!/usr/bin/env bash
# Builds the image and runs it, without a container engine: with buildah, and Debian in place of the base image.
#
#   make image-check       as root, on Debian or a relative, with buildah, debootstrap, curl and jq
#
# The base image's name is given to a root file system that debootstrap makes, with the same Debian and the same
# release of Python, so nothing comes from a registry of images. One container then starts as anybody would start it,
# as an ordinary user who may do nothing; a task goes through its whole life; it is stopped, and starts again on the
# same data. What is left out here, and the engines do: a read-only root, the health check, seccomp.
#
#   WORK=DIR        where the root file system, images and data are, and stay; else in a folder that is removed
#   CA_FILE=FILE    certificates that are trusted while the image is built, where the machine has its own
set -euo pipefail
cd "$(dirname "$0")/../.."

BASE=docker.io/library/python:3.13-slim-trixie
MIRROR=${MIRROR:-http://deb.debian.org/debian}
URL=http://127.0.0.1:8000
CA_FILE=${CA_FILE:-/etc/ssl/certs/ca-certificates.crt}
if [ -z "${WORK:-}" ]; then
  WORK=$(mktemp --directory)
  trap 'rm -rf "$WORK"' EXIT
fi
mkdir -p "$WORK/data" "$WORK/secrets"
container=

build() { buildah --root "$WORK/storage" --runroot "$WORK/run" --storage-driver vfs "$@"; }
say() { printf '\n== %s\n' "$*"; }
now() { date +%s.%N; }
since() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.1f s", to - from }'; }

make_the_base_image() {
  [ -e "$WORK/base/usr/local/bin/pip" ] || {
    say "A root file system, from $MIRROR"
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv trixie "$WORK/base" "$MIRROR" \
      > "$WORK/debootstrap.log"
    # `python` and `pip` where the real image has them.
    chroot "$WORK/base" python3 -m venv /usr/local
    rm -rf "$WORK"/base/var/cache/apt/* "$WORK"/base/var/lib/apt/lists/*
  }
  build inspect --type image "$BASE" > /dev/null 2>&1 || {
    local made
    made=$(build from scratch)
    build copy --quiet "$made" "$WORK/base" / > /dev/null
    build config --env PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin "$made"
    build commit --quiet --rm "$made" "$BASE" > /dev/null
  }
}

# start [VARIABLE=VALUE…]: the image's own command, as its own user.
start() {
  local variables=() from
  for variable in "$@"; do variables+=(--env "$variable"); done
  from=$(now)
  build run --isolation chroot --cap-drop all --user 10001:10001 --volume "$WORK/data:/var/lib/broker" \
    --volume "$WORK/secrets:/run/secrets:ro" "${variables[@]}" "$container" -- broker serve --host 0.0.0.0 \
    > "$WORK/broker.log" 2>&1 &
  runner=$!
  until curl -fsS "$URL/health/ready" > "$WORK/ready.json" 2> /dev/null; do
    kill -0 "$runner" 2> /dev/null || { cat "$WORK/broker.log"; return 1; }
    sleep 0.1
  done
  echo "ready after $(since "$from"): $(cat "$WORK/ready.json")"
}
