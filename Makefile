# Every target makes its own .venv; nothing here needs root, a system PostgreSQL or a compiler.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help dev test check format compat bench bench-wire clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

dev: $(STAMP) ## start the whole mesh in this terminal
	@$(BIN)/meshctl dev

test: $(STAMP) ## every test that can run on this machine
	$(BIN)/python -m pytest

check: $(STAMP) ## formatting, types, import rules, docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/docs_check.py

format: $(STAMP) ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

compat: $(STAMP) ## the drivers' own test suites, direct and through the wire
	$(BIN)/python -m tests.compat

bench: bench-wire ## every benchmark

bench-wire: $(STAMP) ## the wire beside direct, pgbouncer, stunnel and ssh
	$(BIN)/python -m tests.bench.wire

clean: ## remove what the targets made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
