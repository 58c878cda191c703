# What can be done here: `make help`. CI calls the same verbs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
WORKERS ?= 3
MINUTES ?= 1
SEED ?=
REDIS ?= one
EXAMPLES ?= 200

.DEFAULT_GOAL := help
.PHONY: help setup demo dev test fmt lint types env compatibility bench fuzz chaos clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## Make .venv with the sluice command in it

$(VENV)/.ready: pyproject.toml
	@echo "Setting up $(VENV); the first time takes a minute …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded,dev]'
	@touch $@

demo: setup ## Start everything, stream a sample answer, stay up (ARGS=--once ends after it)
	@$(BIN)/sluice dev $(ARGS)

dev: setup ## The same with reload and logs, for development
	@$(BIN)/sluice dev --reload --verbose $(ARGS)

test: setup ## Run the tests (ARGS=tests/common for a part, WORKERS=0 for one after the other)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

fmt: setup ## Format the code
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

lint: setup ## Check style and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/lint-imports

types: setup ## Check types, strictly
	@$(BIN)/mypy

env: setup ## Write .env.example from the settings
	@$(BIN)/python -m cli.env_example > .env.example

compatibility: setup ## Try every client dialect on every provider, and write docs/compatibility.md
	@PYTHONPATH=tests $(BIN)/python -m compatibility_page > docs/compatibility.md

bench: setup ## Measure CPU per token and time to first token on this machine
	@$(BIN)/python bench/run.py $(ARGS)

fuzz: setup ## Send every route what nobody would, for longer than the tests do (EXAMPLES=200 SEED=n)
	@FUZZ_EXAMPLES=$(EXAMPLES) FUZZ_SEED=$(SEED) $(BIN)/python -m pytest tests/security/test_schema.py tests/security/test_fuzzing.py $(ARGS)

chaos: setup ## Break everything around real streams for a minute (MINUTES=10 SEED=n, REDIS=sentinel, ARGS=--verbose); needs nginx
	@PYTHONPATH=.:tests:tests/e2e $(BIN)/python -m chaos --redis $(REDIS) --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

clean: ## Remove what setup and the tools made
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
