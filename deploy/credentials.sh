#!/bin/sh
# Which passwords do Redis, PostgreSQL and the tiers share? Makes them at the first start, and keeps them afterwards.
#
# The `credentials` service of docker-compose.yml runs this. FOLDER has one volume for each of api, worker, redis and postgres,
# and each container can read its own alone. SLUICE_REDIS_URL, SLUICE_DATABASE_URL and SLUICE_SECRET, where they are set, are
# written there instead of what is made here.
#   credentials.sh FOLDER
set -eu
umask 077
cd "$1"

# Write the standard input to a file that appears at once and whole. "$2": its mode.
put() {
  cat >"$1.new"
  chmod "$2" "$1.new"
  mv "$1.new" "$1"
}

# Print a file's random text of 64 characters. It is made once.
random() {
  [ -s "$1" ] || od -An -N32 -tx1 /dev/urandom | tr -d ' \n' | put "$1" 400
  cat "$1"
}

# Print a line of the users' file of Redis, with the hash of a password.
user() {
  name=$1 password=$2
  shift 2
  printf 'user %s on sanitize-payload #%s %s\n' "$name" "$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)" "$*"
}

# As docs/operating.md says. The tiers need the same commands; with a user each, one can be locked out alone.
TIER='~sluice:* ~{gen_* resetchannels &{gen_* -@all +@read +@write +@pubsub +@scripting +@transaction +@connection +time -@dangerous +info'

api_password=$(random api/redis-password)
worker_password=$(random worker/redis-password)
operator_password=$(random redis/operator-password)
{
  # Nobody can log in as the default user, but it may do all: as this user, Redis reads its log of transactions at the start.
  # What it may not do would be lost.
  echo 'user default off sanitize-payload ~* &* +@all'
  echo 'user health on nopass sanitize-payload resetkeys resetchannels -@all +ping'
  user api "$api_password" "$TIER"
  user worker "$worker_password" "$TIER"
  user operator "$operator_password" '~* &* +@all'
} | put redis/users.acl 444 # Redis and PostgreSQL run as other users; the volumes keep everybody else away.
chmod 444 redis/operator-password

random api/database-password | put postgres/password 444
secret=${SLUICE_SECRET:-$(random api/made-secret)}
for tier in api worker; do
  eval "password=\$${tier}_password"
  printf %s "${SLUICE_REDIS_URL:-redis://$tier:$password@redis:6379/0}" | put $tier/redis-url 400
  printf %s "${SLUICE_DATABASE_URL:-postgresql://sluice:$(cat api/database-password)@postgres/sluice}" | put $tier/database-url 400
  printf %s "$secret" | put $tier/secret 400
done
