#!/bin/sh
# Cross-compiles the kernels and the bus for aarch64 and runs their tests under qemu-user, on a Python of that architecture: a small
# Debian root is made in a directory, nothing is installed into the system but the compiler and the emulator.
#   sh scripts/arm.sh [DIRECTORY for the root and the build, default build/arm] [arguments for pytest, default those named below]
# PARTS="bus" or PARTS="kernels": that part alone. A new family of kernels or module of the bus needs nothing here: setup.py knows them.
set -eu
cd "$(dirname "$0")/.."
work=$(mkdir -p "${1:-build/arm}" && cd "${1:-build/arm}" && pwd)
[ $# -eq 0 ] || shift
python=${PYTHON:-$(pwd)/.venv/bin/python}
parts=${PARTS:-kernels bus}
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

# Of the bus what does not depend on how quick a machine is: bytes, machines, shared memory, and nodes over tcp, ipc and CURVE. The
# tests themselves leave out what is not there: TCP_INFO, which qemu-user 7.2 does not know, and boards, which only x86-64 has. It takes
# MADV_REMOVE for a hint and shows maps of its own: the two tests of what those give are left out here.
bus="--deselect tests/edgebus/shm/test_put_and_view.py::test_idle_memory_of_one_owner_makes_room_for_another"
bus="$bus --deselect tests/edgebus/shm/test_put_and_view.py::test_segments_too_small_for_what_is_sent_now_do_not_pile_up"
for name in wire versions unknown_fields handed hub link near sharing loans lending transports express keyed keys; do
    bus="$bus tests/edgebus/test_$name.py"
done
bus="$bus tests/edgebus/shm"

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
[ -d "$work/site/zmq" ] || {
    echo "arm: fetching wheels of what the tests need for $version on aarch64"
    rm -rf "$work/site"
    platforms=""
    for glibc in 17 24 26 27 28; do platforms="$platforms --platform manylinux_2_${glibc}_aarch64"; done
    # shellcheck disable=SC2086
    "$python" -m pip --disable-pip-version-check -q install -c constraints.txt --target "$work/site" --only-binary=:all: $platforms \
        --platform manylinux2014_aarch64 --python-version "${version#python}" numpy scipy hypothesis pytest pytest-timeout \
        pyzmq msgspec msgpack setuptools
}

# As setup.py builds them anywhere, with the other compiler, and the headers of the other Python before those of this one.
folders=""
for part in $parts; do
    case $part in
        kernels) folders="$folders kernels" ;;
        bus) folders="$folders edgebus" ;;
        *) echo "arm: no part $part: there are kernels and bus" >&2; exit 1 ;;
    esac
done
echo "arm: cross-compiling: $parts"
rm -rf "$work/source" "$work/lib"
mkdir -p "$work/source" "$work/lib"
# shellcheck disable=SC2086
tar -cf - --exclude='*.so' --exclude='kernels/edgekernels/_*.c' --exclude='edgebus/*.c' --exclude=__pycache__ setup.py $folders \
    | tar -xf - -C "$work/source"
(
    cd "$work/source"
    printf '[build-system]\nrequires = []\n' >pyproject.toml
    CC=$CC LDSHARED="$CC -shared" CFLAGS="-DNDEBUG -fwrapv -I$work/root/usr/include -I$work/root/usr/include/$version" SETUPTOOLS_EXT_SUFFIX=.so \
        _PYTHON_HOST_PLATFORM=linux-aarch64 "$python" setup.py -q build_ext --build-lib "$work/lib" --build-temp "$work/temp"
) >"$work/build.log" 2>&1 || { cat "$work/build.log" >&2; exit 1; }
for made in "$work"/source/kernels/edgekernels "$work"/source/edgebus; do
    [ ! -d "$made" ] || cp -r "$made" "$work/lib/"
done

# What the tests take for their interpreter, so that those which start another one start it under the emulator, too.
cat >"$work/python" <<EOF
#!/bin/sh
exec qemu-aarch64 -cpu "\$ARM_CPU" -0 "$work/python" -L "$work/root" "$work/root/usr/bin/$version" "\$@"
EOF
chmod +x "$work/python"
export PYTHONHOME="$work/root/usr" PYTHONPATH="$work/lib:$work/site:$(pwd)" PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1 PYTHONSAFEPATH=1
tests() { # processor, arguments of pytest
    export ARM_CPU="$1"
    shift
    # What was built here, not the checkout's, which pytest by its own pythonpath would put first.
    "$work/python" - $parts <<'EOF' || return 1
import importlib, os, platform, sys
assert platform.machine() == "aarch64"
if "kernels" in sys.argv:
    import edgekernels._accept as a, edgekernels._bits as b
    print("arm:", os.environ["ARM_CPU"], "has the levels", sorted({*a.levels(), *b.levels()}))
if "bus" in sys.argv:
    from edgebus import forms
    made = {importlib.import_module(f"edgebus.{name}").__file__ for name in (*forms.COMPILED, *forms.IN_CYTHON)}
    assert len(made) == 1 and made.pop().endswith("/lib/edgebus/_compiled.so")
EOF
    # The profile "ci" does not mind that inputs are made slowly.
    "$work/python" -m pytest -q -rfE -p no:cacheprovider -o pythonpath= --hypothesis-profile=ci --timeout 1200 "$@"
}
if [ $# -gt 0 ]; then
    tests "${ARM_CPU:-neoverse-n1}" "$@"
    exit
fi
status=0 # one that fails leaves the others to be run
for part in $parts; do
    case $part in
        kernels)
            # The emulator takes no bound of the address space (RLIMIT_AS) over: there is memory, and minutes of attention.
            tests neoverse-n1 -m "not slow" tests/edgekernels --deselect \
                tests/edgekernels/test_decoder_paged.py::test_no_memory_for_the_attention_of_a_long_text_is_an_error_and_no_crash || status=1
            # It has no dot products of bytes and must not meet one.
            tests cortex-a53 -m "not slow" -k "reference" tests/edgekernels || status=1
            ;;
        bus)
            # shellcheck disable=SC2086
            tests neoverse-n1 $bus || status=1
            # Without atomics of one instruction.
            tests cortex-a53 tests/edgebus/test_transports.py tests/edgebus/test_lending.py || status=1
            ;;
    esac
done
exit $status
