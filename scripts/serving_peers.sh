#!/bin/sh
# Makes build/serving-peers/bin/llama-server (or $SERVING_PEERS/bin/llama-server), which `sled serve` is held against:
# llama.cpp's own server, from the sources inside the sdist of llama-cpp-python (whose Python server has no parallel
# slots), compiled for this machine's instructions except AMX, whose path crashes on batches above 1. Takes ten minutes
# on two cores; a second run goes on where the first one was stopped.
set -eu
cd "$(dirname "$0")/.."
root=${SERVING_PEERS:-build/serving-peers}
python=${PYTHON:-.venv/bin/python}
wanted=$(grep '^llama-cpp-python==' constraints.txt)
version=${wanted##*==}
source="$root/llama_cpp_python-$version/vendor/llama.cpp"
[ -x "$root/bin/llama-server" ] && [ "$(cat "$root/bin/version" 2>/dev/null)" = "$version" ] && exit 0
mkdir -p "$root/bin"
if ! command -v cmake >/dev/null 2>&1; then
    echo "serving-peers: llama.cpp's server needs cmake and a C++ compiler (apt-get install cmake g++)"
    exit 1
fi
if [ ! -f "$root/unpacked-$version" ]; then
    "$python" -m pip --disable-pip-version-check -q download --no-binary :all: --no-deps -d "$root" "$wanted"
    tar -xzf "$root/llama_cpp_python-$version.tar.gz" -C "$root"
    : >"$root/unpacked-$version"
fi
# GGML_NATIVE would take AMX along; these are the others, each only where the machine has it.
flags=""
has() { grep -qw "$1" /proc/cpuinfo 2>/dev/null && flags="$flags -D$2=ON"; return 0; }
for pair in sse4_2:GGML_SSE42 avx:GGML_AVX avx2:GGML_AVX2 fma:GGML_FMA f16c:GGML_F16C bmi2:GGML_BMI2 \
    avx_vnni:GGML_AVX_VNNI avx512f:GGML_AVX512 avx512vbmi:GGML_AVX512_VBMI avx512_vnni:GGML_AVX512_VNNI avx512_bf16:GGML_AVX512_BF16; do
    has "${pair%%:*}" "${pair##*:}"
done
# shellcheck disable=SC2086 # flags are words
cmake -S "$source" -B "$root/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=OFF $flags \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF \
    -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_CURL=OFF >"$root/configure.log" 2>&1 \
    || { tail -20 "$root/configure.log"; exit 1; }
cmake --build "$root/build" --target llama-server -j "$(nproc)" >"$root/build.log" 2>&1 \
    || { tail -20 "$root/build.log"; exit 1; }
cp "$root/build/bin/llama-server" "$root/bin/"
echo "$version" >"$root/bin/version"
