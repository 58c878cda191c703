#!/usr/bin/env bash
# How does Sluice run on this machine with one command? With Docker Compose; deploy/README.md explains what that starts.
#   ./deploy.sh deploy     build and start everything, or start it again with new settings
#   ./deploy.sh update     the same for a running Sluice, without refusing or cutting a request
#   ./deploy.sh status | logs [SERVICE] | stop
set -euo pipefail
cd "$(dirname "$0")"

fail() {
  echo "$1" >&2
  exit 2
}

# Whether .env or the shell has one of these variables ("$1": a pattern of names, "$2": of the beginning of a value).
has() {
  { cat .env; env; } | grep -E "^(export )?($1)=${2:-}" >/dev/null # Not -q: it ends early, and that would be an error here.
}

prepare() {
  docker compose version >/dev/null 2>&1 || fail "Docker with Compose is needed: 'docker compose version' must work."
  umask 077
  touch .env
  if ! has "SLUICE_API_KEYS(_FILE)?"; then # Empty is a choice: only managed keys or tokens.
    local keys
    keys=$(sed -n 's/^CCPROXY_API_KEYS=//p' .env | tail -n 1)
    printf 'SLUICE_API_KEYS=%s\n' "${keys:-$(openssl rand -hex 24)}" >>.env
    echo "Wrote SLUICE_API_KEYS to .env: the keys that your clients send."
  fi
  if ! has "SLUICE_SECRET(_FILE)?" .; then
    printf 'SLUICE_SECRET=%s\n' "$(openssl rand -hex 32)" >>.env
    echo "Wrote SLUICE_SECRET to .env. Keep it: managed keys and stored provider keys depend on it."
  fi
  has "[A-Z_]+_(API_KEY|BASE_URL)(_FILE)?|SLUICE_PROVIDERS" "['\"]?[^'\" ]" \
    || fail "Write the key of a provider to .env, for example ANTHROPIC_API_KEY=…, and call this again."
}

case "${1:-}" in
  deploy)
    prepare
    docker compose up --detach --build --wait
    address=$(docker compose port nginx 8080)
    echo "Sluice answers at http://$address with the keys in .env (SLUICE_API_KEYS):"
    echo "  curl http://$address/v1/models -H \"Authorization: Bearer \$(sed -n 's/^SLUICE_API_KEYS=//p' .env | cut -d, -f1)\""
    ;;
  update) exec deploy/update.sh "${@:2}" ;;
  status) docker compose ps ;;
  logs) docker compose logs --follow "${@:2}" ;;
  stop) docker compose down ;;
  *) fail "Say what to do: ./deploy.sh deploy | update | status | logs [SERVICE] | stop" ;;
esac
