#!/bin/sh
# A submitter with curl alone: submits a text, waits for the result, and prints the task as it ended.
#
#   ./submit.sh "three small words"
#
# A text with quotes or backslashes needs to be written as JSON has them.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 TEXT" >&2; exit 2; }
url=${BROKER_URL:-http://127.0.0.1:8000}
id=${TASK_ID:-count-$(date +%s)-$$}    # the same id is the same task: it is safe to send it again

# The key goes in a file: the command line of a program is there for all to read.
headers=$(mktemp)
trap 'rm -f "$headers"' EXIT
trap 'exit 143' TERM INT
[ -z "${BROKER_KEY:-}" ] || echo "Authorization: Bearer $BROKER_KEY" > "$headers"

call() {
    curl --silent --show-error --fail-with-body --retry 5 --retry-connrefused --header "@$headers" "$@"
}

body="{\"id\": \"$id\", \"needs\": {\"can\": \"count\"}, \"payload\": \"$1\"}"
answer=$(call "$url/v1/tasks" --json "$body") || { echo "$answer" >&2; exit 1; }
while task=$(call "$url/v1/tasks/$id?wait=60"); do
    case $task in
        *'"state":"succeeded"'*) echo "$task"; exit 0 ;;
        *'"state":"failed"'* | *'"state":"cancelled"'*) echo "$task"; exit 1 ;;
    esac
done
