#!/bin/sh
# A tool that needs only curl. It counts the words of texts, one at a time, until you stop it.
#
#   ./tool.sh counter
#
# The payload is a string without quotes. For any other JSON, use jq, or let `broker tool` run your program.
# It works with curl 7.68 and later.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 TOOL" >&2; exit 2; }
url=${BROKER_URL:-http://127.0.0.1:8000}
tool=$1

# Keep the key in a file, because other users can read the command lines of programs.
headers=$(mktemp)
trap 'rm -f "$headers"' EXIT
trap 'exit 143' TERM INT
echo "Content-Type: application/json" > "$headers"
[ -z "${BROKER_KEY:-}" ] || echo "Authorization: Bearer $BROKER_KEY" >> "$headers"

call() {
    curl --silent --show-error --fail --retry 5 --retry-connrefused --header "@$headers" "$@"
}

count() {
    call "$url/v1/work/$work/reports" --data '{"progress": 0.5, "message": "counting"}' > /dev/null || return
    work_as_json=$(call "$url/v1/work/$work") || return
    words=$(echo "$work_as_json" | sed 's/.*"payload":"\([^"]*\)","progress":.*/\1/' | wc -w)
    call "$url/v1/work/$work/complete" \
        --data "{\"outcome\": \"succeeded\", \"result\": {\"words\": $words}}" > /dev/null || return
    echo "$words words"
}

call "$url/v1/tools" --data "{\"id\": \"$tool\", \"skills\": {\"can\": [\"count\"]}}" > /dev/null
echo "$tool waits for work"
while items=$(call "$url/v1/tools/$tool/work?wait=60"); do
    work=$(echo "$items" | sed -n 's/^{"items":\[{"id":"\([^"]*\)".*/\1/p')
    [ -z "$work" ] || count || echo "work $work has ended without this tool" >&2
done
