#!/bin/sh
# Installs what the bus is measured against: Python packages into .venv, and the mosquitto broker where apt-get is.
set -eu
cd "$(dirname "$0")/.."
.venv/bin/python -m pip --disable-pip-version-check -q install -c constraints.txt -e '.[peers]'
if ! command -v mosquitto >/dev/null 2>&1 && command -v apt-get >/dev/null 2>&1; then
    root=""
    [ "$(id -u)" = 0 ] || root="sudo"
    # It is started by the benchmark, on a loopback port of its own; not as a service.
    { $root apt-get update -qq && $root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends mosquitto; } >/dev/null 2>&1 \
        || echo "peers: mosquitto cannot be installed here; its rows will say so"
fi
