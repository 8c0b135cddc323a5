#!/bin/sh
# A tool with curl alone: counts the words of texts, one at a time, until it is stopped.
#
#   ./tool.sh counter
#
# The payload is a plain text here. For more than that take jq, or let `broker tool` do all of this.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 TOOL" >&2; exit 2; }
url=${BROKER_URL:-http://127.0.0.1:8000}
tool=$1

# The key goes in a file: the command line of a program is there for all to read.
headers=$(mktemp)
trap 'rm -f "$headers"' EXIT
trap 'exit 143' TERM INT
[ -z "${BROKER_KEY:-}" ] || echo "Authorization: Bearer $BROKER_KEY" > "$headers"

call() {
    curl --silent --show-error --fail-with-body --retry 5 --retry-connrefused --header "@$headers" "$@"
}

count() {
    call "$url/v1/work/$work/reports" --json '{"progress": 0.5, "message": "counting"}' > /dev/null || return
    work_as_json=$(call "$url/v1/work/$work") || return
    words=$(echo "$work_as_json" | sed 's/.*"payload":"\([^"]*\)","progress":.*/\1/' | wc -w)
    call "$url/v1/work/$work/complete" \
        --json "{\"outcome\": \"succeeded\", \"result\": {\"words\": $words}}" > /dev/null || return
    echo "$words words"
}

call "$url/v1/tools" --json "{\"id\": \"$tool\", \"skills\": {\"can\": [\"count\"]}}" > /dev/null
echo "$tool waits for work"
while items=$(call "$url/v1/tools/$tool/work?wait=60"); do
    work=$(echo "$items" | sed -n 's/^{"items":\[{"id":"\([^"]*\)".*/\1/p')
    [ -z "$work" ] || count || echo "work $work ended otherwise" >&2
done
