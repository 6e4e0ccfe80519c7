# make demo      set everything up and show what Hanmo does
# make test      set everything up and run the fast tests
# make test-all  run every test, the slow ones too
# make check     lint, format and types
# make bench     the side-by-side measurements (see benchmarks/README.md)

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all check bench clean

# Hanmo alone, which is all that the demo needs.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Hanmo needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	$(BIN)/hanmo cache --warm
	@touch $@

# What the tests and checks need as well.
READY := $(VENV)/ready
$(READY): $(VENV)/installed
	$(INSTALL) -e '.[test,check]'
	@touch $@

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py

test: $(READY)
	$(BIN)/python -m pytest -m 'not slow' -n auto --maxprocesses 4 --dist worksteal

# The slow tests measure memory and time, so each has the machine to itself.
test-all: test
	$(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	@cat benchmarks/README.md

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
