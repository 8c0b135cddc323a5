#!/bin/sh
# Makes the passwords and the first key that compose.yaml hands to its services, each of chance; what is there stays.
#
#   containers/secrets.sh [FOLDER]
#
# The folder is its owner's alone. The files in it may be read by anybody, as each container mounts its own and reads
# it as a user that this machine does not know; the folder keeps everybody else here away from them.
set -eu
folder=${1:-$(dirname "$0")/secrets}
umask 022
mkdir -p "$folder"
chmod 0700 "$folder"

# keep NAME CONTENT: a file, unless it is there.
keep() {
  [ -s "$folder/$1" ] || printf '%s\n' "$2" > "$folder/$1"
}
chance() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

keep broker_admin_key "$(chance)"
keep database_password "$(chance)"
keep grafana_password "$(chance)"
keep pgadmin_password "$(chance)"
# The database's password once more, as pgAdmin and PgBouncer read it.
password=$(cat "$folder/database_password")
keep pgadmin_passfile "*:*:*:broker:$password"
keep pgbouncer_users "\"broker\" \"$password\""
