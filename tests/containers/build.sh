#!/usr/bin/env bash
# Builds the image and runs it, without a container engine: with buildah, and Debian in place of the base image.
#
#   make image-check       as root, on Debian or a relative, with buildah, debootstrap, curl and jq
#
# The base image's name is given to a root file system that debootstrap makes, with the same Debian and the same
# release of Python, so nothing comes from a registry of images. One container then starts as anybody would start it,
# as an ordinary user who may do nothing; a task goes through its whole life; it is stopped, and starts again on the
# same data; and it starts once more where nothing but the data and /tmp can be written. What the engines do beyond
# that, seccomp for example, is left out here.
#
#   MIRROR=URL      where debootstrap finds Debian; else where this machine's apt finds it
#   WORK=DIR        where the root file system, images and data are, and stay; else in a folder that is removed
#   CA_FILE=FILE    certificates that are trusted while the image is built, where the machine has its own
set -euo pipefail
cd "$(dirname "$0")/../.."

BASE=docker.io/library/python:3.13-slim-trixie
IMAGE=localhost/broker
MIRROR=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Identifier: Packages' \
  | awk '$2 !~ /-/ { print $1; exit }')}
[ -n "$MIRROR" ] || { echo "apt has no source of Debian packages here: set MIRROR" && exit 1; }
URL=http://127.0.0.1:8000
CA_FILE=${CA_FILE:-/etc/ssl/certs/ca-certificates.crt}
keep=${WORK:+yes}
WORK=${WORK:-$(mktemp --directory)}
mkdir -p "$WORK/data" "$WORK/secrets"
container=

# Whatever happens, nothing goes on running.
trap clean EXIT
clean() {
  if service=$(the_service); then kill -TERM "$service" && wait || true; fi
  if [ -n "$container" ]; then build rm "$container" > /dev/null; fi
  if [ -z "$keep" ]; then rm -rf "$WORK"; fi
}

build() { buildah --root "$WORK/storage" --runroot "$WORK/run" --storage-driver vfs "$@"; }
say() { printf '\n== %s\n' "$*"; }
now() { date +%s.%N; }
refused() { if "$@"; then echo "this should have been refused: $*" && exit 1; fi; }
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


build_the_image() {
  say "The image"
  local from
  from=$(now)
  build bud --isolation chroot --format docker --pull-never --quiet --tag "$IMAGE" --file Containerfile \
    --volume "$CA_FILE:/etc/ssl/certs/ca-certificates.crt:ro" . > "$WORK/build.log"
  echo "built in $(since "$from"): $(size "$IMAGE"), of which $(size "$BASE") are the base image"
  # What the image says of itself, and that it holds no more than it has to.
  build inspect --type image "$IMAGE" | jq -ce '.Docker.config
    | {User, Entrypoint, Cmd, ExposedPorts, Volumes, StopSignal, health: (.Healthcheck.Test[0])}'
  container=$(build from --pull-never "$IMAGE")
  with "$container" -- broker --version
  refused with "$container" -- python -c 'import pip' 2> /dev/null
}

size() { build images --format '{{.Size}}' "$1"; }
# Not at /var/lib/broker: that is a volume of the image, which buildah 1.28 mounts over ours in some runs.
in_it() { build run --isolation chroot --volume "$WORK/data:/srv/data" --env BROKER_DATA_DIR=/srv/data "$@"; }
# with OPTIONS…: `in_it`, as the image's user, who may do nothing else.
with() { in_it --cap-drop all --user 10001:10001 --volume "$WORK/secrets:/run/secrets:ro" "$@"; }

# The image's own command, as its own user; `buildah run` would take neither by itself.
usual() {
  with --env BROKER_ADMIN_KEY_FILE=/run/secrets/broker_admin_key "$container" -- broker serve --host 0.0.0.0
}

# The same without buildah, whose `run` knows no read-only root.
read_only() {
  local root
  root=$(build mount "$container")
  mkdir -p "$root/run/secrets" "$WORK/empty"
  chown 10001:10001 "$WORK/empty"
  unshare --mount --propagation private sh -eu -c '
    mount --bind "$1" "$1"
    mount --bind "$2" "$1/var/lib/broker"
    mount --bind "$3" "$1/run/secrets"
    mount -t tmpfs tmpfs "$1/tmp"
    mount -t proc proc "$1/proc"
    mount --rbind /dev "$1/dev"
    mount -o remount,ro,bind "$1"
    if touch "$1/somewhere" 2> /dev/null; then echo "this can be written to" && exit 1; fi
    exec env -i PATH=/opt/broker/bin:/usr/bin:/usr/sbin PYTHONDONTWRITEBYTECODE=1 BROKER_DATA_DIR=/var/lib/broker \
      BROKER_ADMIN_KEY_FILE=/run/secrets/broker_admin_key chroot --userspec=10001:10001 --groups= "$1" \
      setpriv --no-new-privs broker serve --host 0.0.0.0' sh "$root" "$WORK/empty" "$WORK/secrets"
}

# start [HOW]
start() {
  local from
  from=$(now)
  "${@:-usual}" > "$WORK/broker.log" 2>&1 &
  runner=$!
  until curl -fsS "$URL/health/ready" > "$WORK/ready.json" 2> /dev/null; do
    kill -0 "$runner" 2> /dev/null || { cat "$WORK/broker.log"; return 1; }
    sleep 0.1
  done
  echo "ready after $(since "$from"): $(cat "$WORK/ready.json")"
}

# SIGTERM to the service, as an engine sends it to a container's first process.
stop() {
  local from
  from=$(now)
  kill -TERM "$(the_service)"
  wait "$runner" # fails as the service does
  echo "gone after $(since "$from"), with status 0"
}
the_service() { pgrep --euid 10001 --full 'bin/python /opt/broker/bin/broker serve'; }

call() { curl -fsS -H "Authorization: Bearer $(cat "$WORK/secrets/broker_admin_key")" "$@"; }

# life_cycle NAME: a task from its submission to the archive.
life_cycle() {
  local work
  call "$URL/v1/tools" --json '{"id": "'"$1"'", "skills": {"can": "count"}}' > /dev/null
  call "$URL/v1/tasks" --json '{"id": "'"$1"'", "needs": {"can": "count"}, "payload": [1, 2]}' > /dev/null
  call "$URL/v1/work" --json '{"task_id": "'"$1"'", "tool_id": "'"$1"'"}' > /dev/null
  work=$(call "$URL/v1/tools/$1/work?wait=10" | jq -er '.items[0].id')
  call "$URL/v1/work/$work/reports" --json '{"progress": 0.5, "message": "half way"}' > /dev/null
  call "$URL/v1/work/$work/complete" --json '{"outcome": "succeeded", "result": {"count": 2}}' > /dev/null
  see "$1"
}

# see NAME: its result is there, and its record with the report.
see() {
  call "$URL/v1/tasks/$1?wait=10" | jq -ce '{id, state, result} | select(.result == {"count": 2})'
  call "$URL/v1/archive?task_id=$1" | jq -ce '.items | map({outcome, reports: (.reports | length)})
    | select(. == [{"outcome": "succeeded", "reports": 1}])'
}

make_the_base_image
build_the_image
chown -R 10001:10001 "$WORK/data"

say "Without a key it does not open itself to others"
refused with "$container" -- broker serve --host 0.0.0.0

say "With one, a life cycle"
sh containers/secrets.sh "$WORK/secrets"
chmod 0755 "$WORK/secrets" # here the folder is mounted, and not each file
start
curl -sS -o /dev/null -w 'without a key: %{http_code}\n' "$URL/v1/tasks"
life_cycle first
with "$container" -- sh -c "$(sed -n 's/^ *CMD \["python", "-c", "\(.*\)"\]$/exec python -c "\1"/p' Containerfile)"
echo "the health check passes"
say "Stopped, and started on the same data"
stop
start
see first
life_cycle second
stop

say "With a read-only root, on no data yet"
start read_only
life_cycle third
stop

say "All as it should be"
