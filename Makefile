# Two commands for a fresh clone on a machine with Python 3.11 and pip:
#
#   make demo    set up, teach the embedded model a new style, and say where the picture is
#   make test    set up, run the tests on two processes, hold coverage
#
# The environment in .venv is made once and used again until pyproject.toml or constraints.txt change.
# After set-up nothing needs a network. Another interpreter: make demo PYTHON=/path/to/python3.11

PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
VENV := .venv
BIN := $(VENV)/bin
DEMO_READY := $(VENV)/.ready-to-demo
DEV_READY := $(VENV)/.ready-to-develop
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check clean

help:
	@sed -n '1,7s/^# \{0,1\}//p' Makefile
	@echo "  make test-all  the tests, and the long ones on real weights"
	@echo "  make check   linter, formatter, types, and documentation against the code"
	@echo "  make clean   delete the environment and everything the other targets made"

# pip is what making an environment puts there last, so half a one is made again.
$(BIN)/pip:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "lorimer needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Making the environment in $(VENV) ..."
	@"$(PYTHON)" -m venv $(VENV)

$(DEMO_READY): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing lorimer with what pictures need ..."
	@$(INSTALL) -e ".[pictures]"
	@touch $@

$(DEV_READY): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing lorimer with what its tests and checks need ..."
	@$(INSTALL) -e ".[dev]"
	@touch $@ $(DEMO_READY)

demo: $(DEMO_READY)
	@$(BIN)/python -m lorimer demo

# One thread per process: two processes of two threads on two cores would wait for each other.
test: $(DEV_READY)
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q \
		--cov --cov-report=term --cov-fail-under=90 --ignore=tests/long $(TESTS)

test-all: test
	@$(BIN)/python -m pytest -q tests/long

check: $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/recipe_reference.py --check
	$(BIN)/python scripts/kohya_reference.py --check
	$(BIN)/python scripts/check_docs.py

clean:
	rm -rf $(VENV) runs/demo .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
