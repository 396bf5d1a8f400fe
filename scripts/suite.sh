#!/bin/sh
# One suite of tests; arguments are pytest's. Where up to three tests fail, they run once more, alone on the machine: what passes
# then depends on how busy the machine is, is printed as unstable, and does not fail the suite (docs/adr/0021).
#   sh scripts/suite.sh -n 2 tests/sled tests/qpart
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
"$python" -m pytest -q -m "not slow" --cache-clear "$@"
code=$?
[ "$code" = 1 ] || exit "$code" # not failed tests, but an error, an interruption, nothing collected
failed=$("$python" -c 'import json; print(*json.load(open(".pytest_cache/v/cache/lastfailed")), sep="\n")')
[ "$(printf '%s\n' "$failed" | grep -c .)" -le 3 ] || exit 1
printf '\nonce more, alone:\n%s\n' "$failed"
printf '%s\n' "$failed" | tr '\n' '\0' | xargs -0 "$python" -m pytest -q -m "not slow" || exit 1
printf '\nUNSTABLE, passed only when alone; please mend:\n%s\n' "$failed"
