#!/bin/sh
# Cross-compiles every family of kernels for aarch64 and runs their tests under qemu-user, on a Python of that architecture: a small
# Debian root is made in a directory, nothing is installed into the system but the compiler and the emulator.
#   sh scripts/arm.sh [DIRECTORY for the root and the build, default build/arm] [arguments for pytest, default all tests of the kernels]
# A new family needs nothing here: every kernels/edgekernels/_FAMILY.pyx is built from kernels/csrc/FAMILY_*.c.
set -eu
cd "$(dirname "$0")/.."
work=$(mkdir -p "${1:-build/arm}" && cd "${1:-build/arm}" && pwd)
[ $# -eq 0 ] || shift
python=${PYTHON:-.venv/bin/python}
CC=aarch64-linux-gnu-gcc

missing=""
command -v $CC >/dev/null 2>&1 || missing="gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
command -v qemu-aarch64 >/dev/null 2>&1 || missing="$missing qemu-user"
if [ -n "$missing" ]; then
    command -v apt-get >/dev/null 2>&1 || { echo "arm: please install the equivalent of: $missing" >&2; exit 1; }
    root=""
    [ "$(id -u)" = 0 ] || root="sudo"
    echo "arm: installing system packages: $missing"
    $root apt-get update -qq
    # shellcheck disable=SC2086
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

# A state of its own, so that apt finds packages of the other architecture and changes nothing of the system's.
[ -x "$work/root/usr/bin/python3" ] || {
    echo "arm: unpacking Debian's python3 for arm64 in $work/root"
    mkdir -p "$work/apt/lists/partial" "$work/apt/archives/partial" "$work/root"
    : >"$work/apt/status"
    cat >"$work/apt/conf" <<EOF
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "";
Dir::State "$work/apt";
Dir::State::status "$work/apt/status";
Dir::Cache "$work/apt";
Debug::NoLocking "true";
EOF
    export APT_CONFIG="$work/apt/conf"
    apt-get -qq update
    apt-get -qq install --download-only -y --no-install-recommends python3 libpython3-dev libgomp1 libstdc++6 >/dev/null
    for package in "$work"/apt/archives/*.deb; do
        dpkg-deb -x "$package" "$work/root"
    done
    unset APT_CONFIG
}
version=$(basename "$(readlink "$work/root/usr/bin/python3")") # python3.11
[ -d "$work/site/numpy" ] || {
    echo "arm: fetching numpy, scipy and pytest for $version on aarch64"
    platforms=""
    for glibc in 17 27 28; do platforms="$platforms --platform manylinux_2_${glibc}_aarch64"; done
    # shellcheck disable=SC2086
    "$python" -m pip --disable-pip-version-check -q install -c constraints.txt --target "$work/site" --only-binary=:all: $platforms \
        --platform manylinux2014_aarch64 --python-version "${version#python}" numpy scipy hypothesis pytest pytest-timeout
}

flags="-O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp -fPIC -Wno-maybe-uninitialized"
include="-Ikernels/csrc -I$work/root/usr/include -I$work/root/usr/include/$version"
lib="$work/lib/edgekernels"
rm -rf "$work/lib"
mkdir -p "$lib"
cp -r kernels/edgekernels/. "$lib/"
rm -f "$lib"/*.so "$lib"/_*.c
for source in kernels/edgekernels/_*.pyx; do
    family=$(basename "$source" .pyx)
    family=${family#_}
    "$python" -m cython -3 "$source" -o "$work/_$family.c"
    # shellcheck disable=SC2012
    variants=$(ls kernels/csrc/"${family}"_*.c | grep -v '\.inc\.c$')
    # shellcheck disable=SC2086
    $CC $flags $include -shared "$work/_$family.c" $variants kernels/csrc/cpu.c -lm \
        -o "$lib/_$family.so"
done

# What the tests take for their interpreter, so that those which start another one start it under the emulator, too.
cat >"$work/python" <<EOF
#!/bin/sh
exec qemu-aarch64 -cpu "\$ARM_CPU" -0 "$work/python" -L "$work/root" "$work/root/usr/bin/$version" "\$@"
EOF
chmod +x "$work/python"
export PYTHONHOME="$work/root/usr" PYTHONPATH="$work/lib:$work/site:$(pwd)" PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1
tests() { # processor, arguments of pytest
    export ARM_CPU="$1"
    shift
    "$work/python" -c 'import os, platform, edgekernels._accept as a, edgekernels._bits as b
assert platform.machine() == "aarch64"
print("arm:", os.environ["ARM_CPU"], "has the levels", sorted({*a.levels(), *b.levels()}))'
    "$work/python" -m pytest -q -rfE -p no:cacheprovider --timeout 1200 "$@"
}
if [ $# -gt 0 ]; then
    tests "${ARM_CPU:-neoverse-n1}" "$@"
else
    tests neoverse-n1 -m "not slow" tests/edgekernels
    tests cortex-a53 -m "not slow" -k "reference" tests/edgekernels # it has no dot products of bytes and must not meet one
fi
