#!/bin/sh
# Create the random passwords and the first key for the services of compose.yaml. Existing files stay unchanged.
#
#   containers/secrets.sh [FOLDER]
#
# Only the owner can enter the folder. The files in it are readable for all users, because each container reads its
# file as a user that does not exist on this machine.
set -eu
folder=${1:-$(dirname "$0")/secrets}
umask 022
mkdir -p "$folder"
chmod 0700 "$folder"

# keep NAME CONTENT: write a file unless it exists.
keep() {
  [ -s "$folder/$1" ] || printf '%s\n' "$2" > "$folder/$1"
}
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

keep broker_admin_key "$(random)"
keep database_password "$(random)"
keep grafana_password "$(random)"
keep pgadmin_password "$(random)"
# The password of the database in the formats of pgAdmin and PgBouncer.
password=$(cat "$folder/database_password")
keep pgadmin_passfile "*:*:*:broker:$password"
keep pgbouncer_users "\"broker\" \"$password\""
