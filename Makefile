# make demo   the main job on real input, with the bundled models
# make test   style, types and tests
# Both set up what they need in .venv; a second run starts at once.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# On Linux the default torch wheel brings CUDA along; for a CPU machine:
#   make demo TORCH_OPTIONS="--index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
TORCH_OPTIONS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test lint types unit nano clean help

help:
	@grep -E '^# make' Makefile

$(VENV)/.base: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install $(TORCH_OPTIONS) "$(TORCH)"
	$(PIP) install -e .
	touch $@

$(VENV)/.test: $(VENV)/.base
	$(PIP) install -e '.[test]'
	touch $@

demo: $(VENV)/.base
	$(BIN)/qwen3-embedding demo

test: lint types unit

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

# Test files side by side, so many at a time.
PROCESSES ?= 2
# One thread: tests that compare bytes between processes need the same number of threads in each.
unit: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile

# The bundled models, made again from the training records (see docs/nano.md)
DATA ?= data
nano: $(VENV)/.base
	$(PIP) install -e '.[train]'
	$(BIN)/python recipes/nano/run.py --data $(DATA)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
