#!/bin/sh
# Builds every family of kernels with address and undefined behaviour sanitizers, outside the repository, and runs their tests.
#   sh scripts/sanitize.sh [DIRECTORY to build in, kept; default a new one, removed] [arguments for pytest, default all tests of the kernels]
set -eu
cd "$(dirname "$0")/.."
root=$(pwd)
python=${PYTHON:-$root/.venv/bin/python}
if [ $# -ge 1 ]; then
    mkdir -p "$1"
    work=$(cd "$1" && pwd)
    shift
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
[ $# -gt 0 ] || set -- -m "not slow" tests/edgekernels
# -O0: from -O1 on gcc takes minutes for each of the products' files; -UNDEBUG: see scripts/fuzz.sh.
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O0 -UNDEBUG"

echo "sanitize: building the kernels with $flags"
mkdir -p "$work/source"
# A directory that is kept has only what has changed built anew: files keep their times.
tar -cf - --exclude='*.so' --exclude='kernels/edgekernels/_*.c' setup.py kernels | tar -xf - -C "$work/source"
(
    cd "$work/source"
    printf '[build-system]\nrequires = []\n' >pyproject.toml
    EDGEKERNELS_OPTIMISE=-O0 CC=gcc CFLAGS="$flags" LDFLAGS="$flags" "$python" setup.py -q build_ext --build-lib "$work/lib" --build-temp "$work/temp"
    # In the place of the old files, not into them: a process that has one of those mapped would die of it, at its end perhaps.
    cp --remove-destination "$work"/lib/edgekernels/_*.so kernels/edgekernels/
) >"$work/build.log" 2>&1 || { cat "$work/build.log" >&2; exit 1; }
for object in "$work"/source/kernels/edgekernels/_*.so; do
    nm -D "$object" | grep -q "U __asan_report" || { echo "sanitize: $object is not instrumented" >&2; exit 1; }
done

# Every object its own allocation: within an arena of Python's a read past the end would not be seen.
export PYTHONMALLOC=malloc
LD_PRELOAD="$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so)"
export LD_PRELOAD
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export PYTHONPATH="$work/source/kernels:$root"

# Does it see anything? A kernel that is told of more codes than its buffer holds must be stopped.
if "$python" -c '
import numpy as np
from edgekernels import _bits
_bits.set_level("base")
_bits.split(np.zeros(64, np.uint8), 640, 8, np.zeros(640, np.uint8))' >"$work/control.log" 2>&1 \
    || ! grep -q 'AddressSanitizer: heap-buffer-overflow' "$work/control.log"; then
    echo "sanitize: a read past the end is not seen: see $work/control.log" >&2
    trap - EXIT
    exit 1
fi
# Some tests want to see a process die of its own segmentation fault.
export ASAN_OPTIONS=$ASAN_OPTIONS:handle_segv=0
# How quick a first call is says nothing here.
set -- --deselect tests/edgekernels/test_select.py::test_first_call_after_import_is_quick "$@"
"$python" -m pytest -q -p no:cacheprovider -W ignore -rfE --timeout 600 "$@"
