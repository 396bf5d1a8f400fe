#!/bin/sh
# Fuzzes every decoder, first as plain Python, then with the native code behind them, the compiled modules of the bus among
# it, built with address and undefined behaviour sanitizers in a throw-away environment outside the repository.
# Results: bench/results/fuzz.json.
#   sh scripts/fuzz.sh [SECONDS per target and run, default 20] [DIRECTORY to build in, kept; default a new one, removed]
# FUZZ_PLAIN=no leaves the first run out, FUZZ_SANITIZED=no what follows it, FUZZ_TESTS=no the tests at the end, TARGETS="wire hub" all
# targets but these. LIBZMQ_SOURCE=DIRECTORY with the sources of libzmq 4.3.5 has libzmq and pyzmq built with the sanitizers too (without
# CURVE, which would need libsodium's).
set -eu
cd "$(dirname "$0")/.."
root=$(pwd)
seconds=${1:-20}
python=${PYTHON:-$root/.venv/bin/python}
pip="-m pip --disable-pip-version-check -q"
if [ $# -ge 2 ]; then
    mkdir -p "$2"
    work=$(cd "$2" && pwd)
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
# Not into the environment of $python, which is somebody's: the fuzzer lies in the directory of the build.
tools=$work/tools
[ -d "$tools/atheris" ] || "$python" $pip install --target "$tools" --no-deps 'atheris>=3.0'

status=0
if [ "${FUZZ_PLAIN:-yes}" != no ]; then
    # Without its compiled modules, which atheris cannot instrument: coverage guides, and what it finds is kept for the run below.
    sources=$(mktemp -d)
    cp -r edgebus "$sources/"
    find "$sources" -name '*.so' -delete
    PYTHONSAFEPATH=1 PYTHONPATH="$sources:$root/kernels:$root:$tools" "$python" -m tests.fuzz.run --seconds "$seconds" --guided --record --label plain \
        --built "the bus as plain Python" ${TARGETS:-} || status=1
    rm -rf "$sources"
fi
[ "${FUZZ_SANITIZED:-yes}" != no ] || exit $status

# -O0: from -O1 on gcc takes minutes for each of the products' files, whose functions are large and inlined, and half an hour
# in all. Everything compiles at -O0, intrinsics that want constants too: there they are macros.
# -UNDEBUG: what Python's headers and Cython assert, too, such as that what is taken for a tuple is one.
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O0 -UNDEBUG"
log=$work/build.log
[ -x "$work/venv/bin/python" ] || {
    echo "fuzz: building msgspec, the kernels and the bus with $flags in $work"
    "$python" -m venv "$work/venv"
    pin() { "$python" -c "from importlib.metadata import version; print('$1==' + version('$1'))"; }
    CC=gcc CFLAGS="$flags" LDFLAGS="$flags" "$work/venv/bin/python" $pip install --no-cache-dir --no-binary msgspec "$(pin msgspec)" >"$log" 2>&1
    if [ -n "${LIBZMQ_SOURCE:-}" ]; then
        cmake -S "$LIBZMQ_SOURCE" -B "$work/zmq-build" -DCMAKE_INSTALL_PREFIX="$work/zmq" -DCMAKE_BUILD_TYPE=None \
            -DCMAKE_C_COMPILER=gcc -DCMAKE_CXX_COMPILER=g++ "-DCMAKE_CXX_FLAGS=$flags -O1" -DENABLE_CURVE=OFF \
            -DBUILD_TESTS=OFF -DWITH_PERF_TOOL=OFF -DWITH_DOCS=OFF -DBUILD_STATIC=OFF >>"$log" 2>&1
        make -C "$work/zmq-build" -j2 install >>"$log" 2>&1
        ZMQ_PREFIX=$work/zmq CC=gcc CXX=g++ CFLAGS="$flags -O1" CXXFLAGS="$flags -O1" LDFLAGS="$flags" \
            "$work/venv/bin/python" $pip install --no-cache-dir --no-binary pyzmq "$(pin pyzmq)" >>"$log" 2>&1
    fi
    # Wheels are not instrumented, and pyzmq's carries libzmq: of them the sanitizer sees allocations and copies only.
    "$work/venv/bin/python" $pip install "$(pin numpy)" "$(pin pyzmq)" "$(pin msgpack)" "$(pin hypothesis)" \
        "$(pin pytest)" "$(pin pytest-timeout)" "$(pin scipy)" "$(pin safetensors)" "$(pin cython)" "$(pin setuptools)" \
        "$(pin zeroconf)" "$(pin jinja2)" "$(pin pynacl)" >>"$log" 2>&1
    "$work/venv/bin/python" $pip install --no-deps "$(pin tokenizers)" >>"$log" 2>&1
}
# A directory that is kept has only what has changed built anew.
mkdir -p "$work/source"
tar -cf - --exclude='*.so' --exclude='kernels/edgekernels/_*.c' --exclude='edgebus/*.c' setup.py kernels edgebus | tar -xf - -C "$work/source"
(
    cd "$work/source"
    printf '[build-system]\nrequires = []\n' >pyproject.toml
    EDGEKERNELS_OPTIMISE=-O0 CC=gcc CFLAGS="$flags" LDFLAGS="$flags" "$work/venv/bin/python" setup.py -q build_ext --build-lib "$work/lib" --build-temp "$work/temp"
    # In the place of the old files, not into them: a process that has one of those mapped would die of it, at its end perhaps.
    cp --remove-destination "$work"/lib/edgekernels/_*.so kernels/edgekernels/
    cp -r --remove-destination "$work/lib/edgebus" .
) >>"$log" 2>&1

# What calls the sanitizer by itself, and so was built with it.
zmq=$(ls -d "$work"/zmq/lib 2>/dev/null || true)
objects=$(find "$work/venv/lib" "$work/source/kernels" "$work/source/edgebus" $zmq -name '*.so*' -type f ! -path '*/atheris/*' ! -name 'asan_*' \
    -exec sh -c 'nm -D "$1" 2>/dev/null | grep -q "U __asan_report" && basename "$1"' _ {} \; | sort | tr '\n' ' ')

bus_tests=""
for name in wire hub express express_large transports lending handed near unended waiting pool sharing loans bulk inbox turns; do
    bus_tests="$bus_tests tests/edgebus/test_$name.py"
done
bus_tests="$bus_tests tests/edgebus/shm"

# Every object its own allocation: within an arena of Python's a read past the end would not be seen.
export PYTHONMALLOC=malloc
export LD_PRELOAD="$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export EDGEBUS_FUZZ_SANITIZER="address, undefined behaviour (gcc)"
# The built bus before the checkout's, whose own compiled modules the current directory would bring in first.
export PYTHONSAFEPATH=1
export PYTHONPATH="$work/source/kernels:$work/source:$root:$tools"
asan="$work/venv/bin/python"

if "$asan" -c 'import ctypes; ctypes.string_at(ctypes.create_string_buffer(16), 256)' >"$work/control.log" 2>&1 \
    || ! grep -q 'AddressSanitizer: heap-buffer-overflow' "$work/control.log"; then
    echo "fuzz: the sanitizer does not see a read past the end: see $work/control.log" >&2
    exit 1
fi
echo "fuzz: instrumented: $objects"
"$asan" -m tests.fuzz.run --seconds "$seconds" --record --label sanitized --built "$flags: $objects" ${TARGETS:-} || status=1
[ "${FUZZ_TESTS:-yes}" != no ] || exit $status
# One of the kernels' tests wants to see a process die of its own segmentation fault. Without its own pythonpath, which would put the
# checkout's bus before the built one (tests/fuzz/test_fuzz.py sees to that).
tested() { # what they are the tests of, arguments of pytest
    what=$1
    shift
    ASAN_OPTIONS=$ASAN_OPTIONS:handle_segv=0 "$asan" -m pytest -q -p no:cacheprovider -o pythonpath= -W ignore -m "not slow" --timeout 600 \
        "$@" >"$work/tests.log" 2>&1 && tests=passed || { tests=failed; status=1; cp "$work/tests.log" "$work/tests_failed.log"; }
    tail -1 "$work/tests.log"
    "$asan" -m tests.fuzz.run --note "sanitized:tests of $what under the sanitizers=$tests, $(tail -1 "$work/tests.log")"
}
# shellcheck disable=SC2086
tested "the bus and of tests/fuzz" $bus_tests tests/fuzz
tested "the kernels" --deselect tests/edgekernels/test_select.py::test_first_call_after_import_is_quick tests/edgekernels
exit $status
