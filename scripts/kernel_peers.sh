#!/bin/sh
# Makes build/kernel-peers: an environment with what the kernels are measured against, which sees all of .venv besides,
# so that .venv itself stays as small as it is. llama.cpp is compiled for this machine, which takes some ten minutes.
set -eu
cd "$(dirname "$0")/.."
venv=build/kernel-peers
[ -x "$venv/bin/python" ] || .venv/bin/python -m venv "$venv"
folder() { "$1" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'; }
echo "import site; site.addsitedir('$(folder .venv/bin/python)')" >"$(folder "$venv/bin/python")/venv-of-the-project.pth"
.venv/bin/python - >"$venv/wanted.txt" <<'EOF'
import tomllib
with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["project"]["optional-dependencies"]["kernel-peers"], sep="\n")
EOF
while read -r wanted; do
    CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) "$venv/bin/python" -m pip --disable-pip-version-check -q install -c constraints.txt "$wanted" \
        || echo "kernel-peers: $wanted cannot be installed here; its rows will say so"
done <"$venv/wanted.txt"
