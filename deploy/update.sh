#!/usr/bin/env bash
# How does a running Sluice get a new version or new settings without refusing, cutting or hanging anybody?
#
# New replicas start beside the old ones. When they are healthy and nginx knows them, the old ones stop, which finishes their
# responses and generations. If the new ones do not become healthy, they go again, and the old ones were never touched.
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

replace() {  # "$1": the service; "$2": how long the old ones keep taking requests beside the new ones.
  local service=$1 old new count
  old=$(containers "$service")
  count=$(wc -w <<<"$old")
  if [ "$count" = 0 ]; then
    echo "No $service is running: start with 'docker compose up -d --wait'." >&2
    return 1
  fi
  if ! compose up -d --no-deps --no-recreate --wait --scale "$service=$((2 * count))" "$service"; then
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
  compose up -d --no-deps --no-recreate --scale "$service=$count" "$service"
}

replace api "$NGINX_LEARNS_S"
replace worker 0
echo "api and worker run the new version. If nginx, redis or postgres changed too: docker compose up -d, with seconds of refusals."
