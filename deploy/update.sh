#!/usr/bin/env bash
# How does a running Sluice get a new version or new settings without refusing, cutting or hanging anybody?
#
# New replicas start beside the old ones. When they are healthy and nginx knows them, the old ones stop, which finishes their
# responses and generations. If the new ones do not become healthy, they go again, and the old ones were never touched.
# In the end there are as many as before. The last lines say what else has changed, if anything has.
#   deploy/update.sh [--no-build]     --no-build: SLUICE_IMAGE was pulled, or only .env has changed.
set -euo pipefail
cd "$(dirname "$0")/.."
compose() { docker compose "$@"; }
containers() { compose ps -q "$1" | sort; }

# nginx remembers the addresses of `api` for two whole seconds (deploy/nginx/api-servers.conf), which may take almost three.
NGINX_LEARNS_S=4

if [ "${1:-}" != --no-build ]; then
  compose build api
fi
compose run --rm --no-deps credentials
compose run --rm --no-deps migrate
# Compose makes these two anew below, as their dependants' first step. If they stayed as they were, the next `up -d` would find
# them changed, and make all that depends on them anew: Redis and PostgreSQL, too.
compose rm --force --stop credentials migrate

replace() {  # "$1": the service; "$2": how long the old ones keep taking requests beside the new ones.
  local service=$1 old new count
  old=$(containers "$service")
  count=$(wc -w <<<"$old")
  if [ "$count" = 0 ]; then
    echo "No $service is running: start with 'docker compose up -d --wait'." >&2
    return 1
  fi
  # Without --no-deps: some versions of Compose count the dependencies as a part of the configuration, and would find it changed
  # at the next `up -d`. With --no-recreate, those that run stay as they are.
  if ! compose up -d --no-recreate --wait --scale "$service=$((2 * count))" "$service"; then
    new=$(comm -13 <(echo "$old") <(containers "$service"))
    echo "The new $service did not become healthy. The old one goes on. Its last lines:" >&2
    docker logs --tail 20 "$(head -n 1 <<<"$new")" >&2 || true
    xargs -r docker rm --force >/dev/null <<<"$new"
    return 1
  fi
  sleep "$2"
  # Each container has its own grace (stop_grace_period): docker stop without --time uses it. All stop at the same time.
  xargs -r docker stop >/dev/null <<<"$old"
  xargs -r docker rm >/dev/null <<<"$old"
}

reload_nginx() {  # If its files have changed since it read them.
  [ -n "$(containers nginx)" ] || return 0
  compose exec -T nginx sh -c '
    if [ -n "$(find /etc/nginx/sluice/ -newer /tmp/nginx.pid)" ]; then
      touch /tmp/nginx.pid
      kill -HUP 1
      echo "nginx reads its changed files."
    fi'
}

# Print the other services that run with another configuration or image than the one that is here now. (Of services with an
# env_file, some versions of Compose print a hash that they do not use.)
changed() {
  local service hash id
  while read -r service hash; do
    [[ $service =~ ^(api|worker)$ ]] && continue
    for id in $(containers "$service"); do
      if [ "$(docker inspect -f '{{index .Config.Labels "com.docker.compose.config-hash"}}' "$id")" != "$hash" ] ||
        [ "$(docker inspect -f '{{.Image}}' "$id")" != "$(docker image inspect -f '{{.Id}}' "$(docker inspect -f '{{.Config.Image}}' "$id")")" ]; then
        echo "$service"
        break
      fi
    done
  done < <(compose config --hash '*')
}

report_number() {  # "$1": the service. Does .env say as many as there are?
  local written count
  written=$(compose config | awk -v name="$1:" '/^  [^ ]/ { is_inside = $1 == name } is_inside && /^    scale:/ { print $2 }')
  count=$(containers "$1" | wc -l)
  if [ "$count" != "${written:-1}" ]; then
    echo "$1: $count replicas, as before. 'docker compose up -d' would make ${written:-1}: .env decides, SLUICE_${1^^}_REPLICAS."
  fi
}

reload_nginx
replace api "$NGINX_LEARNS_S"
replace worker 0
echo "api and worker are up to date."
report_number api
report_number worker
others=$(changed | xargs)
if [ -n "$others" ]; then
  echo "Changed, but still running as before: $others. Seconds of 503: docker compose up -d --no-deps $others"
fi
