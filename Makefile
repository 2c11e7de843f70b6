# People and CI use the same targets. Each sets up what it needs in .venv, once.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# It asks the python on the path for the packages.
PYRIGHT = PATH="$(abspath $(BIN)):$$PATH" pyright

.PHONY: demo test check format docs bench fault-matrix soak fuzz dist clean help
.DEFAULT_GOAL := help

help:
	@echo 'make demo      the main job, end to end, on this machine (DEMO=--once: and stop)'
	@echo 'make test      every test, with coverage'
	@echo 'make check     format, lint and types'
	@echo 'make format    mend format and what lint can mend'
	@echo 'make docs      the documentation as a site, in build/site'
	@echo 'make dist      wheel and sdist, in dist/, tried as installed'
	@echo 'make fuzz      100,000 inputs of any kind for each place where strangers reach in (FUZZ="--runs 1000 token")'
	@echo 'make soak      ten minutes of load and faults (SOAK="--seconds 60": as long as you like)'
	@echo 'make fault-matrix  write docs/fault-matrix.md anew'
	@echo 'make bench     side by side with other proxies (BENCH=--quick: in a few minutes)'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed; name one with make PYTHON=python3.12 …' >&2; exit 1; }
	@echo 'Setting up $(VENV) …'
	@$(PYTHON) -m venv $(VENV)
	@# Dependency groups need pip 25.1.
	@$(PIP) install -q --upgrade pip

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo 'Installing idp-middleware and what the demo needs …'
	@$(PIP) install -q -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo 'Installing idp-middleware and what its tests need …'
	@$(PIP) install -q --group dev -e '.[demo,redis,sqlalchemy]'
	@touch $@

# Apart, since it is large and comes for few platforms.
$(VENV)/.fuzz: $(VENV)/.dev
	@$(PIP) install -q --group fuzz
	@touch $@

# The demo answers Ctrl-C itself; make would only add an error of its own.
demo: $(VENV)/.demo
	@exec $(BIN)/idp-middleware demo $(DEMO)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing
	$(PYRIGHT)
	@# What it reports is long; what is wrong stands in the middle.
	$(PYRIGHT) --verifytypes idp_middleware --ignoreexternal >$(VENV)/types.txt || { cat $(VENV)/types.txt; exit 1; }

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Most tests wait for a good part of their time, so several are under way; those after them look at the clock, and are alone.
ALONE := tests/faults/test_matrix.py

test: $(VENV)/.dev
	@rm -f .coverage .coverage.*
ifdef TESTS
	$(BIN)/coverage run -m pytest $(TESTS)
else
	$(BIN)/coverage run -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ALONE:%=--ignore=%)
	$(BIN)/coverage run -m pytest $(ALONE)
endif
	@$(BIN)/coverage combine -q
	$(BIN)/coverage report

docs: $(VENV)/.dev
	$(BIN)/python -m docs

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(BENCH)

dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build -q
	IDP_DIST=index $(BIN)/python -m pytest -q tests/test_dist.py

fuzz: $(VENV)/.fuzz
	$(BIN)/python -m tests.fuzz $(FUZZ)

fault-matrix: $(VENV)/.dev
	FAULT_MATRIX=write $(BIN)/python -m pytest -q tests/faults/test_matrix.py

soak: $(VENV)/.dev
	$(BIN)/python -m tests.faults.soak $(SOAK)

clean:
	rm -rf tests/fuzz/.findings
	rm -rf benchmarks/.setup benchmarks/.runs benchmarks/node/node_modules tests/independent/node_modules examples/spa/node_modules
	rm -rf $(VENV) .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
