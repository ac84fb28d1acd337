#!/usr/bin/env bash
# Run the tests; a few that fail are run once more, alone, and named as unsteady if they pass then:
# real brokers, schedulers and sockets share the machine with whatever else runs on it.
# Usage: scripts/run-tests.sh PYTHON [OPTIONS OF PYTEST]
set -uo pipefail
cd "$(dirname "$0")/.."
python=${1:?the Python of the environment}
shift
most=4
cache=$PWD/build/test-cache

failed() {
  [ -e "$cache/v/cache/lastfailed" ] || return 0
  "$python" -c 'import json, sys; print(*json.load(open(sys.argv[1])), sep="\n")' \
    "$cache/v/cache/lastfailed"
}

rm -rf "$cache"
"$python" -m pytest -o cache_dir="$cache" "$@"
code=$?
names=$(failed)
count=$(printf '%s' "$names" | grep -c '')
# 1: tests failed. Anything else is not about single tests.
if [ "$code" != 1 ] || [ "$count" = 0 ] || [ "$count" -gt "$most" ]; then exit "$code"; fi
echo "run-tests: $count failed, once more, alone:"
"$python" -m pytest -o cache_dir="$cache" --last-failed "$@" || exit
printf 'run-tests: unsteady, failed among the others and passed alone:\n%s\n' "$names"
