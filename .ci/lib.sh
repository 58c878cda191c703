# Shared by .ci/run and .ci/check-all: printing and timing of steps, finding Python versions, finding flaky tests.
# shellcheck shell=bash
export PIP_DISABLE_PIP_VERSION_CHECK=1

# Install the system packages that some tests need, and those in "$@". Without them these tests are skipped.
install_packages() {
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends redis-server nginx-light chromium postgresql systemd python3 python3-venv "$@" >/dev/null
  fi
}

# Start a container engine where none runs, if that is possible here, and build the images. The engine ends with the script.
# Without an engine its tests are skipped, and that is said here.
start_engine() {
  local log pid begin
  if [ "$(id -u)" != 0 ]; then
    has_engine || echo "No container engine, and only root may start one: its tests are skipped."
    return 0
  fi
  install_missing dockerd:docker.io iptables:iptables debootstrap:debootstrap apparmor_parser:apparmor
  if ! has_engine; then
    log=$(mktemp)
    dockerd </dev/null >"$log" 2>&1 &
    pid=$!
    until has_engine; do
      # It may be missing, or this machine may not let it run: in most containers it cannot.
      if ! kill -0 "$pid" 2>/dev/null || [ $((SECONDS - ${begin:=$SECONDS})) -ge 60 ]; then
        stop_engine "$pid"
        echo "No container engine starts here: its tests are skipped. Its last lines:"
        tail -n 3 "$log"
        rm -f "$log"
        return 0
      fi
      sleep 0.5
    done
    # shellcheck disable=SC2064  # The process and the file are known now.
    trap "stop_engine $pid; rm -f $log" EXIT
  fi
  "$(dirname "${BASH_SOURCE[0]}")/stand-ins/build"
}

has_engine() {
  docker info >/dev/null 2>&1
}

# It also ends what it has started. A script that ends first would leave it behind for a while.
stop_engine() {
  kill "$1" 2>/dev/null || return 0
  wait "$1" || true
}

# Install the packages of commands that are missing, each as COMMAND:PACKAGE. It is not a fault if that fails.
install_missing() {
  local pair packages=()
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || packages+=("${pair#*:}")
  done
  if [ ${#packages[@]} != 0 ] && command -v apt-get >/dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null || true
  fi
}

# Run a command, and print how long it took.
step() {
  local begin=$SECONDS status=0
  echo "== $*"
  "$@" || status=$?
  echo "== $((SECONDS - begin)) s, exit status $status: $*"
  return $status
}

# Use the distribution's own Python if it is new enough: it is the oldest version that many users have.
use_own_python() {
  if /usr/bin/python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    export PYTHON=/usr/bin/python3
  fi
}

# Print one Python of each usable version, oldest first, except the version of .venv. It searches the distribution, PATH and pyenv.
# "$1": how many parts of a version count; with 2, 3.12.1 and 3.12.9 are the same version.
other_pythons() {
  local python tell='import sys, venv, ensurepip; sys.version_info >= (3, 11) and print(".".join(map(str, sys.version_info[:int(sys.argv[1])])), sys.executable)'
  for python in /usr/bin/python3 python3.{11..19} "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python3 .venv/bin/python; do
    "$python" -c "$tell" "$1" 2>/dev/null || true
  done | sort -s -V -u -k1,1 | grep -v "^$(.venv/bin/python -c "$tell" "$1" | cut -d ' ' -f 1) "
}

# Run unit and contract tests on each of them; "$1" as above. "$2": only on so many, the newest ones.
unit_on_other_pythons() {
  local version python
  while read -r version python; do
    step make unit PYTHON="$python" VENV=".venv-$version" ARGS="-p no:cacheprovider" </dev/null || return
  done < <(other_pythons "$1" | tail -n "${2:-+1}")
}

# Run `make test`. Failed tests run once more, one at a time. A test that passes then is flaky; it is listed, because that is a bug too.
test_twice() {
  FLAKY=()
  rm -f .pytest_cache/v/cache/lastfailed
  step make test ARGS="$*" && return
  mapfile -t FLAKY < <(.venv/bin/python -c 'import json; print(*json.load(open(".pytest_cache/v/cache/lastfailed")), sep="\n")')
  printf 'failed at first: %s\n' "${FLAKY[@]}"
  step make test WORKERS=0 ARGS="--last-failed --last-failed-no-failures none $*"
}

# Print the last line: how many tests needed a second run, and which ones.
print_flaky() {
  echo "${#FLAKY[@]} flaky${FLAKY[*]:+: ${FLAKY[*]}}"
}
