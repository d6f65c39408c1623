# Every command of this repository. `make` alone lists them; another Python: make test PYTHON=python3.13
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
BAKE := build/cluster-app
# $(call install,NAME,ARGUMENTS): prints a dot for each package, so that a slow network does not look like a hang, and a
# failure as one sentence. Without a network pip gives up within seconds.
install = set -o pipefail; printf 'Installing %s ' '$(1)'; \
    PYTHONUNBUFFERED=1 $(BIN)/python -m pip install --disable-pip-version-check --retries 2 $(2) 2>.venv/pip.log | \
    awk '{ printf "."; fflush() }' && echo ' done' || { echo; echo "error: pip could not install $(1):" \
    "$$(sed -n 's/^ERROR: //p' .venv/pip.log | tail -n 1). Is there a network? The output of pip is in $(CURDIR)/.venv/pip.log"; exit 1; }

.DEFAULT_GOAL := help
# Three on two cores: they wait for a third of the time, for processes that start and for deadlines.
PYTEST := $(BIN)/pytest -n 3 --dist loadgroup --durations=10
.PHONY: help demo bake bench manifest test test-all lint format clean
SOURCES := {{cookiecutter.project_slug}}/src

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: bake ## Generate the default project, and compare what workers counted with what Redis counted
	@$(MAKE) --no-print-directory -C $(BAKE) demo PYTHON=$(PYTHON)

bake: .venv/bake ## Generate the default project into build/
	@rm -rf $(BAKE)/src $(BAKE)/tests
	@! test -f $(BAKE)/pyproject.toml || cp -p $(BAKE)/pyproject.toml build/before
	@$(BIN)/cookiecutter . --no-input --overwrite-if-exists --output-dir build >/dev/null
	@# Unchanged, it keeps its date: nothing needs to be installed again.
	@[ "$$(cat build/before 2>&1)" != "$$(cat $(BAKE)/pyproject.toml)" ] || mv build/before $(BAKE)/pyproject.toml
	@echo 'Baked $(BAKE)'

bench: .venv/bench ## Measure a project beside its peers, and write this README: all, or SUITES="reload stop"
	@$(BIN)/python -m benchmarks $(SUITES)
	@$(BIN)/python -m benchmarks.readme

test: ## Lint and tests: this Python, what this machine can run. At its end: what was left out
	@echo 'About 5 minutes on 2 cores. make test-all runs besides: every Python found, both event loops, the containers,'
	@echo 'Redis and Valkey from 6.2 to 9, a Redis Cluster, and slow tests of processes (all but QUICK in tests/conftest.py).'
	@$(MAKE) --no-print-directory lint
	@$(PYTEST)

test-all: lint ## What CI runs: every Python found, Redis and Valkey, the containers
	@$(PYTEST) --all

lint: .venv/dev ## Style and format of everything; types, import rules and MANIFESTs of the engine and the demo
	@! $(PYTHON) -B '$(SOURCES)/everycore/manifest.py' | grep -v ', as released$$' || { echo 'Run: make manifest'; exit 1; }
	@$(BIN)/ruff check --config pyproject.toml .
	@$(BIN)/ruff format --check --config pyproject.toml .
	@$(BIN)/mypy
	@PYTHONPATH='$(SOURCES)' $(BIN)/lint-imports --no-cache --no-logo

format: .venv/dev ## Fix style and format
	@$(BIN)/ruff check --fix --config pyproject.toml .
	@$(BIN)/ruff format --config pyproject.toml .

manifest: ## Write what the files of the engine and of the demo are now into their MANIFESTs
	@$(PYTHON) -B '$(SOURCES)/everycore/manifest.py' --write

clean: ## Remove what was installed, baked and cached
	@rm -rf .venv build .pytest_cache .ruff_cache

.venv/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "error: Python 3.11 or newer is needed. Name one: make demo PYTHON=python3.13"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "error: no venv. On Debian: apt install python3-venv"; exit 1; }
	@$(call install,pip,--upgrade 'pip>=25.1')
	@touch $@

.venv/bake: pyproject.toml | .venv/pip
	@$(call install,cookiecutter,--group bake)
	@touch $@

.venv/bench: pyproject.toml | .venv/pip
	@$(call install,the runner of the benchmarks,--group bench)
	@touch $@

.venv/dev: pyproject.toml | .venv/pip
	@$(call install,the tools for the tests,--group dev)
	@touch $@
