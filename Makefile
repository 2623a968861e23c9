# Everything a person or CI does with this repository. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NODE := tests/conformance/node_modules

.DEFAULT_GOAL := help
.PHONY: help setup observability demo test test-all test-arm64 fuzz mca check format proto bench speculation overhead soak bench-peers bench-kernels bench-memory bench-prediction bench-governor precision quantizations pocket pocket-scores golden wheel clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python {v[0]}.{v[1]} is too old; edgephi needs 3.11: make PYTHON=python3.11 ...")'
	@# Debian splits venv from Python; root gets it installed, everyone else is told.
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
	    { apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "cannot make a virtual environment; on Debian: apt install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.developer: pyproject.toml $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --group dev
	@touch $@

setup: $(VENV)/.developer ## install edgephi and the developers' tools into .venv

demo: $(VENV)/.installed ## serve the pocket model on loopback, ask it over gRPC, stop it
	$(BIN)/edgephi demo

# The second client stack of tests/conformance. Root gets npm installed; everyone else is told, and its tests skip.
$(NODE)/.installed: tests/conformance/package.json tests/conformance/package-lock.json
	@command -v npm >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nodejs npm; }
	@if command -v npm >/dev/null; then \
	    cd tests/conformance && npm ci --ignore-scripts --no-audit --no-fund --silent && touch node_modules/.installed; \
	else echo "npm is not installed, so the tests with gRPC for Node are skipped; on Debian: apt install nodejs npm"; fi

test: $(VENV)/.developer $(NODE)/.installed ## run the tests (all but those marked slow or arm64)
	$(BIN)/pytest -m 'not slow and not arm64'

test-all: $(VENV)/.developer $(NODE)/.installed ## run every test but those marked arm64
	$(BIN)/pytest -m 'not arm64'

$(VENV)/.zig: pyproject.toml $(VENV)/.developer
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[zig]'
	@touch $@

test-arm64: $(VENV)/.zig ## cross-compile and run the kernels, models and a server on emulated ARM CPUs (x86 Debian, as root)
	$(BIN)/python -m tests.arm64.root
	$(BIN)/pytest -m arm64 tests/arm64

FUZZ_RUNS ?= 5000000
fuzz: $(VENV)/.developer ## fuzz requests and process messages, FUZZ_RUNS inputs each (hours; x86_64)
	$(BIN)/python -m tests.fuzz requests --runs $(FUZZ_RUNS)
	$(BIN)/python -m tests.fuzz messages --runs $(FUZZ_RUNS)

mca: $(VENV)/.developer ## bound the matrix kernel's speed on ARM cores from its machine code (needs llvm-mca 19 or later)
	$(BIN)/python -m tests.arm64.mca

check: $(VENV)/.developer ## lint, types, import contracts, contract lint, generated code fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd proto && ../$(BIN)/buf lint
	$(BIN)/python proto/breaking.py
	$(BIN)/python proto/generate.py --check

format: $(VENV)/.developer ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(VENV)/.developer ## regenerate the Python of the contract
	$(BIN)/python proto/generate.py

observability: $(VENV)/.installed ## write the Grafana dashboard and the table of metrics again
	$(BIN)/python deploy/grafana/generate.py
	$(BIN)/python docs/generate.py

build/phi3-mini-4k-synth: | $(VENV)/.installed
	$(BIN)/edgephi model synth phi3-mini-4k $@

bench: $(VENV)/.installed | build/phi3-mini-4k-synth ## measure Phi-3-mini's full size with random weights (5 GB of disk)
	$(BIN)/edgephi bench --model build/phi3-mini-4k-synth --json

bench-kernels: $(VENV)/.installed ## measure the matrix kernel against arithmetic and memory
	$(BIN)/python -m tests.bench.kernels

quantizations: $(VENV)/.installed ## compare formats of weights: bytes, error, logits
	$(BIN)/python -m tests.bench.quantizations

precision: $(VENV)/.installed ## measure what int8 activations and int8 keys and values cost
	$(BIN)/python -m tests.bench.precision

build/peers-venv/.installed: pyproject.toml | $(VENV)/bin/python
	$(PYTHON) -m venv build/peers-venv
	build/peers-venv/bin/pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@# From source, so that llama.cpp is compiled for this CPU.
	CMAKE_ARGS=-DGGML_NATIVE=ON build/peers-venv/bin/pip install --quiet --disable-pip-version-check \
	    --no-binary llama-cpp-python --group peers
	@touch $@

build/peers/phi3.gguf: | build/peers-venv/.installed
	build/peers-venv/bin/python -m tests.bench.models.gguf_model $@

build/peers/onnx: | build/peers-venv/.installed
	build/peers-venv/bin/python -m tests.bench.models.onnx_model $@

build/peers/openvino: | build/peers-venv/.installed
	build/peers-venv/bin/python -m tests.bench.models.openvino_model $@

bench-peers: $(VENV)/.installed | build/phi3-mini-4k-synth build/peers/phi3.gguf build/peers/onnx build/peers/openvino ## compare with llama.cpp, ONNX Runtime GenAI and OpenVINO (24 GB of RAM, 12 GB of disk, an hour)
	$(BIN)/python -m tests.bench.compare

bench-memory: $(VENV)/.installed | build/phi3-mini-4k-synth ## compare predicted and measured peak memory of servers in control groups (root)
	$(BIN)/python -m tests.bench.memory --model pocket --model build/phi3-mini-4k-synth

bench-prediction: $(VENV)/.installed | build/phi3-mini-4k-synth ## compare predicted and measured decoding speed
	$(BIN)/python -m tests.bench.prediction --model build/phi3-mini-4k-synth

bench-governor: $(VENV)/.installed | build/phi3-mini-4k-synth ## show the governor while a CPU quota is cut and restored (root)
	$(BIN)/python -m tests.bench.governor --model build/phi3-mini-4k-synth

speculation: $(VENV)/.installed ## count tokens per pass over the weights with guessed tokens, on the pocket model
	$(BIN)/python tests/bench/speculation.py

overhead: $(VENV)/.installed ## time sampling and the engine's steps without a model
	$(BIN)/python tests/bench/overhead.py

soak: $(VENV)/.installed ## ask a server everything at once, 110,000 times; nothing may grow or end unexplained (10 minutes)
	$(BIN)/python -m tests.soak --rpcs 100000 --channels 10000

pocket: $(VENV)/.installed ## train the pocket model again (20 to 40 minutes on two cores)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[train]'
	$(BIN)/python -m edgephi.pocket.train

pocket-scores: $(VENV)/.installed ## measure the pocket model's accuracy
	$(BIN)/python -m edgephi.pocket.evaluate

build/golden-venv: | $(VENV)/bin/python
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet --disable-pip-version-check --editable . torch==2.13.0 transformers==5.23.0

golden: | build/golden-venv ## make the golden data of Hugging Face's Phi-3 again; look at the diff
	build/golden-venv/bin/python tests/golden/hf-phi3/make_golden.py

wheel: $(VENV)/.developer ## build the wheel into dist/
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove what the targets made, the environment included
	rm -rf $(VENV) $(NODE) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
