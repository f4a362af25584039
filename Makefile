# Every target makes its own .venv; nothing here needs root, a system PostgreSQL or a compiler.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
BENCH  := $(VENV)-bench

.DEFAULT_GOAL := help
.PHONY: help dev test test-compiled check format compat bench bench-wire bench-idle bench-slow clean

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

# The same tests against the compiled modules: from a folder where only the tests lie, so that nothing shadows them.
test-compiled: $(BENCH)/.installed ## the tests of the compiled modules, compiled
	mkdir -p $(BENCH)/run
	ln -sfn ../../tests ../../docs ../../conf.example ../../pyproject.toml $(BENCH)/run/
	cd $(BENCH)/run && ../bin/python -c 'import tunnel_proto.mux as m; assert not m.__file__.endswith(".py"), "not compiled: no C compiler?"'
	cd $(BENCH)/run && ../bin/python -m pytest tests/tunnel_proto tests/qgate/test_postgres_*.py tests/minigate/test_sidecar.py

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

bench: bench-wire bench-idle bench-slow ## every benchmark

# What a user installs: a wheel, compiled where there is a C compiler. See docs/decisions/compiled-modules.md.
$(BENCH)/.installed: pyproject.toml setup.py $(wildcard tunnel_proto/*.py qgate/*.py qgate/*/*.py minigate/*.py meshctl/*.py meshctl/*/*.py)
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	rm -rf build
	$(BENCH)/bin/python -m pip install --quiet '.[dev]'
	@touch $@

bench-wire: $(BENCH)/.installed ## the wire beside direct, pgbouncer, stunnel and ssh
	$(BENCH)/bin/python -m tests.bench.wire

bench-idle: $(BENCH)/.installed ## memory and CPU of 5,000 idle connections
	$(BENCH)/bin/python -m tests.bench.idle

bench-slow: $(BENCH)/.installed ## a 20 Mbit/s, 40 ms line (needs root: it makes network namespaces)
	$(BENCH)/bin/python -m tests.bench.slowlink

clean: ## remove what the targets made
	rm -rf $(VENV) $(BENCH) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
