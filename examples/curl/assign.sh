#!/bin/sh
# An assigner with curl alone: gives a tool the tasks that need something, the oldest first, until it is stopped.
#
#   ./assign.sh counter '{"can":"count"}'
#
# It waits for news with a cursor, so it costs nothing while there are none.
set -eu

[ $# -eq 2 ] || { echo "usage: $0 TOOL NEEDS" >&2; exit 2; }
url=${BROKER_URL:-http://127.0.0.1:8000}
tool=$1 needs=$2 cursor=

# The key goes in a file: the command line of a program is there for all to read.
headers=$(mktemp)
trap 'rm -f "$headers"' EXIT
trap 'exit 143' TERM INT
[ -z "${BROKER_KEY:-}" ] || echo "Authorization: Bearer $BROKER_KEY" > "$headers"

call() {
    curl --silent --show-error --fail-with-body --retry 5 --retry-connrefused --header "@$headers" "$@"
}

first() { # the id of the first item of a list
    sed -n 's/^{"items":\[{"id":"\([^"]*\)".*/\1/p'
}

pair() { # while the tool has room and a task is there
    call "$url/v1/tools/$tool" | grep -q '"state":"idle"' || return 1
    task=$(call --get "$url/v1/tasks" --data state=available --data limit=1 --data-urlencode "needs=$needs" | first)
    [ -n "$task" ] || return 1
    call "$url/v1/work" --json "{\"task_id\": \"$task\", \"tool_id\": \"$tool\"}" > /dev/null || return 0
    echo "$task to $tool"
}

while news=$(call "$url/v1/candidates?limit=1&wait=60${cursor:+&cursor=$cursor}"); do
    cursor=$(echo "$news" | sed -n 's/^{"cursor":"\([^"]*\)".*/\1/p')
    while pair; do :; done
done
