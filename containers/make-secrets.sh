#!/bin/sh
# Draws the secrets of this set of containers at its first start, so that no two sets share any and none is checked in.
# Each secret goes to the volumes of the containers that need it. Existing secrets stay.
set -eu
umask 022

# keep FILE - writes FILE from standard input, whole or not at all.
keep() {
    cat >"$1.new"
    mv "$1.new" "$1"
}

# draw FILE - writes 192 random bits in hexadecimal, unless FILE has content.
draw() {
    [ -s "$1" ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' | keep "$1"
}

# database_url ROLE FILE - prints the connection string of ROLE with the password in FILE.
database_url() {
    printf 'postgres://%s:%s@db/oncepay' "$1" "$(cat "$2")"
}

cd /secrets
draw postgres/superuser_password
draw postgres/owner_password
draw postgres/app_password
draw service/master_key
# The secret that the processor signs its events with: give it to your processor, or mount your processor's instead.
[ -s service/webhook_secret ] || printf 'whsec_%s' "$(head -c 32 /dev/urandom | base64)" | keep service/webhook_secret
database_url oncepay_owner postgres/owner_password | keep owner/database_url
database_url oncepay_app postgres/app_password | keep service/database_url
