# Each target is the command that the README shows; the virtual environment is made on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Files are handed out in the order in which they are collected: the last ones are short, so that no worker is left alone.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
# More of them: torch and gguf (import of .pt and GGUF files, tests against transformers), cuda, tpu.
EXTRAS ?= dev

.PHONY: help venv install demo test test-slow lint docs clean

help:
	@echo "make demo       train, evaluate and report on MovieLens (the report: runs/demo/report.html)"
	@echo "make test       the fast tests, in parallel"
	@echo "make test-slow  all tests"
	@echo "make lint       ruff and mypy"
	@echo "make docs       the pages of docs/ as HTML, in docs/_build"

venv: $(BIN)/python

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

install: $(VENV)/installed

$(VENV)/installed: setup.py pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

demo: install
	$(BIN)/unimp demo

test: install
	$(PYTEST) -m "not slow"

test-slow: install
	$(PYTEST)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: install
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/sphinx-build -q -W -b html docs docs/_build

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info
