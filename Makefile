# Every command of this repository. `make` alone lists them; another Python: make test PYTHON=python3.13
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
BAKE := build/cluster-app
PIP := PYTHONUNBUFFERED=1 $(BIN)/python -m pip install --disable-pip-version-check
# One dot for each package, so that a slow network does not look like a hang.
DOTS := awk '{ printf "."; fflush() } END { print " done" }'

.DEFAULT_GOAL := help
.PHONY: help demo bake bench test lint format clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: bake ## Bake the default answers, and see every worker disagree while Redis is exact
	@$(MAKE) --no-print-directory -C $(BAKE) demo PYTHON=$(PYTHON)

bake: .venv/bake ## Generate the default project into build/
	@rm -rf $(BAKE)/src $(BAKE)/tests
	@! test -f $(BAKE)/pyproject.toml || cp -p $(BAKE)/pyproject.toml build/before
	@$(BIN)/cookiecutter . --no-input --overwrite-if-exists --output-dir build >/dev/null
	@# Unchanged, it keeps its date: nothing needs to be installed again.
	@! cmp -s build/before $(BAKE)/pyproject.toml || mv build/before $(BAKE)/pyproject.toml
	@echo 'Baked $(BAKE)'

bench: .venv/bench ## Measure a bake beside its peers, into this README: all, or SUITES="reload stop"
	@$(BIN)/python -m benchmarks $(SUITES)
	@$(BIN)/python -m benchmarks.readme

test: lint ## Everything CI runs: lint, and what comes out of a bake on every Python found
	@$(BIN)/pytest -n 2 --dist loadgroup --durations=10

lint: .venv/dev ## Style and format, of the template's sources in place too
	@$(BIN)/ruff check benchmarks hooks tests
	@$(BIN)/ruff format --check --config pyproject.toml .

format: .venv/dev ## Mend style and format
	@$(BIN)/ruff check --fix benchmarks hooks tests
	@$(BIN)/ruff format --config pyproject.toml .

clean: ## Remove what was installed, baked and cached
	@rm -rf .venv build .pytest_cache .ruff_cache

.venv/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "error: Python 3.11 or newer is needed. Name one: make demo PYTHON=python3.13"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "error: no venv. On Debian: apt install python3-venv"; exit 1; }
	@set -o pipefail; printf 'Installing pip '; $(PIP) --upgrade 'pip>=25.1' | $(DOTS)
	@touch $@

.venv/bake: pyproject.toml | .venv/pip
	@set -o pipefail; printf 'Installing cookiecutter '; $(PIP) --group bake | $(DOTS)
	@touch $@

.venv/bench: pyproject.toml | .venv/pip
	@set -o pipefail; printf 'Installing the runner of the benchmarks '; $(PIP) --group bench | $(DOTS)
	@touch $@

.venv/dev: pyproject.toml | .venv/pip
	@set -o pipefail; printf 'Installing the tools for the tests '; $(PIP) --group dev | $(DOTS)
	@touch $@
