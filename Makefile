# kvmpfn: `make help` lists what there is to do.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Extra options for pytest, for instance: make test PYTEST_ARGS='-k lines -x'
PYTEST_ARGS ?=
# Processes that run the tests, a file of tests in one; 0 runs them all in pytest's own.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help env figures bench test lint format lock clean

help: ## List the targets.
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  %-8s %s\n' "$$name" "$$text"; done

env: $(STAMP) ## Create .venv with exactly the locked packages, and kvmpfn in it.

# pip refuses --require-hashes for an editable install: the locked packages go in first, the build back
# end among them, and the project follows with nothing left to fetch.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "kvmpfn needs Python 3.11 or later; name one with: make env PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked packages into $(VENV)"
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-warn-script-location \
		--require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-warn-script-location \
		--no-build-isolation --no-deps --editable .
	@touch $@

figures: env ## Regenerate every figure, and the data behind each, from the notebooks.
	$(BIN)/kvmpfn figures

bench: env ## Time the simulator: its parts, then all of it, into benchmarks/results.json and the README.
	$(BIN)/pytest benchmarks --benchmark-enable --benchmark-columns=median,min,max,rounds
	$(BIN)/kvmpfn bench --full --output benchmarks/results.json --readme README.md

format: env ## Put the code in the project's style, and mend what ruff can mend.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: env ## Style, types and the direction of imports.
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: lint ## Everything that must hold: lint, then the tests.
	$(BIN)/pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

# uv only resolves; it lives in a throwaway environment and does not read pip's configuration.
lock: ## Resolve the dependencies anew into requirements.lock.
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	$(PYTHON) -m venv "$$dir" && \
	"$$dir/bin/python" -m pip install --quiet --quiet --disable-pip-version-check uv && \
	"$$dir/bin/uv" pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 \
		--generate-hashes --all-extras --no-header --no-emit-index-url --no-annotate \
		--output-file requirements.lock

clean: ## Remove the environment and every cache.
	rm -rf $(VENV) build dist .benchmarks .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +
