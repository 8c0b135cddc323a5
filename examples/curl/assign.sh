#!/bin/sh
# An assigner that needs only curl. It gives one tool all tasks with certain needs, the oldest first.
#
#   ./assign.sh counter '{"can":"count"}'
#
# It waits for changes with a cursor, so it does not poll.
set -eu

[ $# -eq 2 ] || { echo "usage: $0 TOOL NEEDS" >&2; exit 2; }
url=${BROKER_URL:-http://127.0.0.1:8000}
tool=$1 needs=$2 cursor=

# Keep the key in a file, because other users can read the command lines of programs.
headers=$(mktemp)
trap 'rm -f "$headers"' EXIT
trap 'exit 143' TERM INT
echo "Content-Type: application/json" > "$headers"
[ -z "${BROKER_KEY:-}" ] || echo "Authorization: Bearer $BROKER_KEY" >> "$headers"

call() {
    curl --silent --show-error --fail --retry 5 --retry-connrefused --header "@$headers" "$@"
}

first_id() { # print the id of the first item of a list
    sed -n 's/^{"items":\[{"id":"\([^"]*\)".*/\1/p'
}

pair() { # give the tool one task; fail if it is not idle or no task waits
    call "$url/v1/tools/$tool" | grep -q '"state":"idle"' || return 1
    task=$(call --get "$url/v1/tasks" --data state=available --data limit=1 --data-urlencode "needs=$needs" | first_id)
    [ -n "$task" ] || return 1
    call "$url/v1/work" --data "{\"task_id\": \"$task\", \"tool_id\": \"$tool\"}" > /dev/null || return 0
    echo "$task to $tool"
}

while page=$(call "$url/v1/candidates?limit=1&wait=60${cursor:+&cursor=$cursor}"); do
    cursor=$(echo "$page" | sed -n 's/^{"cursor":"\([^"]*\)".*/\1/p')
    while pair; do :; done
done
