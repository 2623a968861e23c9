# Everything a person or CI does with this repository. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check format proto bench pocket pocket-scores golden wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

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

test: $(VENV)/.developer ## run the tests (all but those marked slow)
	$(BIN)/pytest -m 'not slow'

test-all: $(VENV)/.developer ## run every test
	$(BIN)/pytest

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

build/phi3-mini-4k-synth: | $(VENV)/.installed
	$(BIN)/edgephi model synth phi3-mini-4k --out $@

bench: $(VENV)/.installed | build/phi3-mini-4k-synth ## measure Phi-3-mini's full size with random weights (5 GB of disk)
	$(BIN)/edgephi bench --model build/phi3-mini-4k-synth --json

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
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
