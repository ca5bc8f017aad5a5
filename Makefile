# Each target is the command that the README shows; the virtual environment is made on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Files are handed out in the order in which they are collected: the last ones are short, so that no worker is left alone.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
# More of them: torch and gguf (import of .pt and GGUF files, tests against transformers), cuda, tpu.
EXTRAS ?= dev

# A newer Python comes with a newer jax and flax (setup.py); `-c ''` passes over pyenv's names of what is not active.
NEWER_PYTHON := $(shell for python in python3.13 ~/.pyenv/versions/3.13.*/bin/python python3.12 \
	~/.pyenv/versions/3.12.*/bin/python; do $$python -c '' 2> /dev/null && echo $$python && break; done)
NEWER_TESTS := tests/unimp_jax/test_model.py::test_packed_equals_a_row_each \
	tests/unimp_jax/planning $(addprefix tests/data_pipelines/,test_packing.py test_records.py test_sequences.py)

.PHONY: help venv install demo test test-slow test-newer lint docs clean

help:
	@echo "make demo       train, evaluate and report on MovieLens (the report: runs/demo/report.html)"
	@echo "make test       the fast tests, in parallel"
	@echo "make test-slow  all tests"
	@echo "make test-newer a small share of them on Python 3.13 or 3.12, whose jax and flax are newer"
	@echo "make lint       ruff and mypy"
	@echo "make docs       the pages of docs/ as HTML, in docs/_build"

venv: $(BIN)/python

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

install: $(VENV)/installed

$(VENV)/installed: setup.py pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) --editable '.[$(EXTRAS)]'
	touch $@

demo: install
	$(BIN)/unimp demo

test: install
	$(PYTEST) -m "not slow"

test-slow: install
	$(PYTEST)

test-newer:
	$(if $(NEWER_PYTHON),,@echo "test-newer: neither Python 3.13 nor 3.12 was found: nothing was tested")
	$(if $(NEWER_PYTHON),$(MAKE) PYTHON=$(NEWER_PYTHON) VENV=.venv-newer EXTRAS=test PIP_OPTIONS=--no-compile install)
	$(if $(NEWER_PYTHON),.venv-newer/bin/python -m pytest -m "not slow" $(NEWER_TESTS))

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: install
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/sphinx-build -q -W -b html docs docs/_build

clean:
	rm -rf $(VENV) .venv-newer build dist docs/_build *.egg-info
