# `make demo` and `make test` set up everything they need; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: all setup bytecode demo test lint format docs clean

all: lint test

# -- set-up: a virtual environment beside the sources, and Debian packages when they are missing ------------------------

$(STAMP): pyproject.toml
	@echo "setup: installs into $(VENV) from PyPI: xenpy's dependencies and its development tools (see pyproject.toml)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

setup: $(STAMP)

# Bytecode beside the sources spares every start in the emulated host, whose view of them is read-only, compiling them again.
bytecode: $(STAMP)
	@$(BIN)/python -m compileall -q xenpy

demo: bytecode
	@sh tools/need.sh demo
	@$(BIN)/python tools/demo.py

test: bytecode lint
	@sh tools/need.sh test
	@$(BIN)/python tools/guests.py >/dev/null || echo "test: guests that cannot be fetched are skipped"
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/abi.py --check

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python tools/docs.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
