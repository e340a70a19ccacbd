# The two commands: `make train` and `make test`. Both set up .venv first; PYTHON=python3.12 picks another interpreter.
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Processes that share the tests: a core each, at most 4; 0 is this one process.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 1); echo $$((n < 2 ? 0 : n > 4 ? 4 : n)))
# Memory goes back to the system as it is freed: 1.5 instead of 1.8 GB a process.
TRIM := env MALLOC_MMAP_THRESHOLD_=1048576 MALLOC_TRIM_THRESHOLD_=1048576 MALLOC_ARENA_MAX=2
PYTEST := $(TRIM) $(BIN)/python -m pytest -rs -n $(JOBS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup train test nightly check docs format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt scripts/setup.sh
	PYTHON="$(PYTHON)" bash scripts/setup.sh $(VENV)
	@touch $@

setup: $(READY) ## Create .venv and install, after naming what the system lacks

train: $(READY) ## Train from pixels on the one-block BlockPush (CPU preset), evaluate, draw slots and explored states
	bash scripts/demo.sh $(ARGS)

test: $(READY) ## Run the tests, without the slow ones
	$(PYTEST) -m "not slow"

nightly: $(READY) ## Run every test, with line coverage, the whole of make train, and the notebook; results/nightly.md gets a line
	bash scripts/nightly.sh "$(PYTEST)" "$(BIN)"

check: $(READY) ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY) ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(READY) ## Format and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove .venv and caches; runs/ stays
	rm -rf $(VENV) site .pytest_cache .ruff_cache .mypy_cache .coverage *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
