# One command each for a first look and for all checks. Needs make and Python 3.11 or later:
#     make demo            make test            make demo PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
PYTEST := $(BIN)/pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-postgres lint benchmark clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1: \2/p' Makefile

demo: $(VENV)/.installed ## simulate a federation on the built-in marketplace and name the report
	$(BIN)/crossrec simulate --out runs/demo
	@echo "Open $(CURDIR)/runs/demo/report.html"

test: lint ## lint, types, import rules, then all tests that take seconds
	$(PYTEST)

test-slow: $(VENV)/.installed-dev ## the tests that take minutes
	$(PYTEST) -m slow

test-postgres: $(VENV)/.installed-dev ## SQL sources against a real PostgreSQL (apt-get install postgresql)
	$(BIN)/pytest -m postgres

test-deployment: $(VENV)/.installed-dev ## a federation of real processes, killed and lied to
	$(BIN)/pytest -m deployment -s tests/e2e/test_deployment.py

lint: $(VENV)/.installed-dev ## style, types and import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmark: $(VENV)/.installed-dev ## speed and memory of training engines and ledger (takes long)
	$(BIN)/crossrec benchmark engine
	$(BIN)/pytest -q -s tests/benchmarks/bench_*.py

clean: ## remove the environment and all caches; runs/ stays
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find client common server simulations tests -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "CrossRec needs Python 3.11 or later, and \`$(PYTHON)\` is not:" \
	        "$$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.12 ..." >&2; \
	    exit 1; }
	$(PYTHON) -m venv $(VENV)

# Installed once; again only when the requirements change.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[audit]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[dev,ray]'
	@touch $(VENV)/.installed $@
