#!/usr/bin/env bash
# Build the image and run it without a container engine: with buildah, and with Debian instead of the base image.
#
#   make image-check       as root, on Debian or a derivative, with buildah, debootstrap, curl and jq
#
# debootstrap creates a root file system with the same Debian and Python version, which gets the name of the base image.
# So nothing is downloaded from an image registry. The script starts a container as an ordinary user without
# capabilities, and a task goes through its whole life cycle. Then it restarts the container on the same data, and
# starts it once more with only the data and /tmp writable. Other protections of engines, such as seccomp, are not
# tested.
#
#   MIRROR=URL      the Debian mirror for debootstrap. Default: the one that apt uses on this machine.
#   WORK=DIR        keep the root file system, images and data in this folder. Default: a folder that is removed.
#   CA_FILE=FILE    certificates to trust during the build, if this machine has its own.
set -euo pipefail
cd "$(dirname "$0")/../.."

BASE=docker.io/library/python:3.13-slim-trixie
IMAGE=localhost/broker
MIRROR=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Identifier: Packages' \
  | awk '$2 !~ /-/ { print $1; exit }')}
[ -n "$MIRROR" ] || { echo "apt has no source of Debian packages on this machine. Set MIRROR." && exit 1; }
URL=http://127.0.0.1:8000
CA_FILE=${CA_FILE:-/etc/ssl/certs/ca-certificates.crt}
keep=${WORK:+yes}
WORK=${WORK:-$(mktemp --directory)}
mkdir -p "$WORK/data" "$WORK/secrets"
container=

# Stop everything, also after an error.
trap clean EXIT
clean() {
  if service=$(service_pid); then kill -TERM "$service" && wait || true; fi
  if [ -n "$container" ]; then build rm "$container" > /dev/null; fi
  if [ -z "$keep" ]; then rm -rf "$WORK"; fi
}

build() { buildah --root "$WORK/storage" --runroot "$WORK/run" --storage-driver vfs "$@"; }
say() { printf '\n== %s\n' "$*"; }
now() { date +%s.%N; }
must_fail() { if "$@"; then echo "this command should have failed: $*" && exit 1; fi; }
since() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.1f s", to - from }'; }

make_base_image() {
  [ -e "$WORK/base/usr/local/bin/pip" ] || {
    say "Create a root file system from $MIRROR"
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv trixie "$WORK/base" "$MIRROR" \
      > "$WORK/debootstrap.log"
    # `python` and `pip` are at the same paths as in the real image.
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


build_image() {
  say "Build the image"
  local from
  from=$(now)
  build bud --isolation chroot --format docker --pull-never --quiet --tag "$IMAGE" --file Containerfile \
    --volume "$CA_FILE:/etc/ssl/certs/ca-certificates.crt:ro" . > "$WORK/build.log"
  echo "built in $(since "$from"): $(size "$IMAGE"), including the base image of $(size "$BASE")"
  # Print the configuration of the image, and check that it does not contain pip.
  build inspect --type image "$IMAGE" | jq -ce '.Docker.config
    | {User, Entrypoint, Cmd, ExposedPorts, Volumes, StopSignal, health: (.Healthcheck.Test[0])}'
  container=$(build from --pull-never "$IMAGE")
  run_restricted "$container" -- broker --version
  must_fail run_restricted "$container" -- python -c 'import pip' 2> /dev/null
}

size() { build images --format '{{.Size}}' "$1"; }
# /var/lib/broker is a volume of the image. buildah 1.28 sometimes mounts it over a folder, so this uses another path.
run_in_container() { build run --isolation chroot --volume "$WORK/data:/srv/data" --env BROKER_DATA_DIR=/srv/data "$@"; }
# run_restricted OPTIONS…: run in the container as the image's user, without capabilities.
run_restricted() { run_in_container --cap-drop all --user 10001:10001 --volume "$WORK/secrets:/run/secrets:ro" "$@"; }

# The image's command, run as its user. `buildah run` uses neither by default.
serve() {
  run_restricted --env BROKER_ADMIN_KEY_FILE=/run/secrets/broker_admin_key "$container" -- broker serve --host 0.0.0.0
}

# The same without buildah, whose `run` does not support a read-only root.
serve_read_only() {
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
    if touch "$1/somewhere" 2> /dev/null; then echo "the root file system is writable" && exit 1; fi
    exec env -i PATH=/opt/broker/bin:/usr/bin:/usr/sbin PYTHONDONTWRITEBYTECODE=1 BROKER_DATA_DIR=/var/lib/broker \
      BROKER_ADMIN_KEY_FILE=/run/secrets/broker_admin_key chroot --userspec=10001:10001 --groups= "$1" \
      setpriv --no-new-privs broker serve --host 0.0.0.0' sh "$root" "$WORK/empty" "$WORK/secrets"
}

# start [FUNCTION]
start() {
  local from
  from=$(now)
  "${@:-serve}" > "$WORK/broker.log" 2>&1 &
  runner=$!
  until curl -fsS "$URL/health/ready" > "$WORK/ready.json" 2> /dev/null; do
    kill -0 "$runner" 2> /dev/null || { cat "$WORK/broker.log"; return 1; }
    sleep 0.1
  done
  echo "ready after $(since "$from"): $(cat "$WORK/ready.json")"
}

# Send SIGTERM to the service, as an engine sends it to the first process of a container.
stop() {
  local from
  from=$(now)
  kill -TERM "$(service_pid)"
  wait "$runner" # fails if the service fails
  echo "stopped after $(since "$from"), with status 0"
}
service_pid() { pgrep --euid 10001 --full 'bin/python /opt/broker/bin/broker serve'; }

request() { curl -fsS -H "Authorization: Bearer $(cat "$WORK/secrets/broker_admin_key")" "$@"; }

# life_cycle NAME: run a task from its submission to the archive.
life_cycle() {
  local work
  request "$URL/v1/tools" --json '{"id": "'"$1"'", "skills": {"can": "count"}}' > /dev/null
  request "$URL/v1/tasks" --json '{"id": "'"$1"'", "needs": {"can": "count"}, "payload": [1, 2]}' > /dev/null
  request "$URL/v1/work" --json '{"task_id": "'"$1"'", "tool_id": "'"$1"'"}' > /dev/null
  work=$(request "$URL/v1/tools/$1/work?wait=10" | jq -er '.items[0].id')
  request "$URL/v1/work/$work/reports" --json '{"progress": 0.5, "message": "half way"}' > /dev/null
  request "$URL/v1/work/$work/complete" --json '{"outcome": "succeeded", "result": {"count": 2}}' > /dev/null
  check_result "$1"
}

# check_result NAME: check the result of the task, and its record with one report.
check_result() {
  request "$URL/v1/tasks/$1?wait=10" | jq -ce '{id, state, result} | select(.result == {"count": 2})'
  request "$URL/v1/archive?task_id=$1" | jq -ce '.items | map({outcome, reports: (.reports | length)})
    | select(. == [{"outcome": "succeeded", "reports": 1}])'
}

make_base_image
build_image
chown -R 10001:10001 "$WORK/data"

say "Without a key it listens only on loopback addresses"
must_fail run_restricted "$container" -- broker serve --host 0.0.0.0

say "With a key, a task runs through its life cycle"
sh containers/secrets.sh "$WORK/secrets"
chmod 0755 "$WORK/secrets" # because the folder is mounted here, not each file
start
curl -sS -o /dev/null -w 'without a key: %{http_code}\n' "$URL/v1/tasks"
life_cycle first
run_restricted "$container" -- sh -c "$(sed -n 's/^ *CMD \["python", "-c", "\(.*\)"\]$/exec python -c "\1"/p' Containerfile)"
echo "the health check passes"
say "Restart on the same data"
stop
start
check_result first
life_cycle second
stop

say "Start with a read-only root and without data"
start serve_read_only
life_cycle third
stop

say "All checks passed"
