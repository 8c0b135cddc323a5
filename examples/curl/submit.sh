#!/bin/sh
# A submitter that needs only curl. It submits a text, waits for the result, and prints the ended task.
#
#   ./submit.sh "three small words"
#
# Write quotes and backslashes in the text as JSON requires: \" and \\.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 TEXT" >&2; exit 2; }
url=${BROKER_URL:-http://127.0.0.1:8000}
id=${TASK_ID:-count-$(date +%s)-$$}    # the same id is the same task, so the request is safe to repeat

# Keep the key in a file, because other users can read the command lines of programs.
headers=$(mktemp)
trap 'rm -f "$headers"' EXIT
trap 'exit 143' TERM INT
echo "Content-Type: application/json" > "$headers"
[ -z "${BROKER_KEY:-}" ] || echo "Authorization: Bearer $BROKER_KEY" >> "$headers"

call() {
    curl --silent --show-error --fail --retry 5 --retry-connrefused --header "@$headers" "$@"
}

body="{\"id\": \"$id\", \"needs\": {\"can\": \"count\"}, \"payload\": \"$1\"}"
call "$url/v1/tasks" --data "$body" > /dev/null
while task=$(call "$url/v1/tasks/$id?wait=60"); do
    case $task in
        *'"state":"succeeded"'*) echo "$task"; exit 0 ;;
        *'"state":"failed"'* | *'"state":"cancelled"'*) echo "$task"; exit 1 ;;
    esac
done
