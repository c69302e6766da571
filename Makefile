# Everything that is done with this repository. `make help` lists it; each target sets up what it needs first.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON_BIN := .venv/bin
export PYTHONPATH := $(CURDIR)/include
ARGS ?=

.PHONY: help setup demo lab test lint bench requirements clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing: Debian packages, .venv, the `recovery` command (at once when nothing is)
	@scripts/setup

demo: setup ## a disaster and the recovery from it, on real servers; the report is .lab/report.html
	@$(PYTHON_BIN)/python -m lab demo $(ARGS)

lab: setup ## start the lab and leave it up until Ctrl-C (ARGS=--detach returns when it is ready)
	@$(PYTHON_BIN)/python -m lab up $(ARGS)

test: setup ## run the tests; ARGS="-k wal -x" goes to pytest
	@$(PYTHON_BIN)/python -m pytest $(ARGS)

bench: setup ## measure speed and cost against the peers
	@$(PYTHON_BIN)/python -m benchmarks $(ARGS)

# The checks run side by side; one failure does not hide another, and what passes says nothing.
lint: setup ## all static checks
	@$(MAKE) --jobs=4 --output-sync=target --keep-going $(addprefix lint-,$(CHECKS))
	@echo "lint: $(CHECKS): passed"

CHECKS := types ruff format imports compose dockerfile scripts
SHELL_SCRIPTS := .ci/run scripts/setup $(wildcard include/config/*/*.sh)
quietly = @output=$$($(1) 2>&1) || { echo "$$output"; exit 1; }

.PHONY: $(addprefix lint-,$(CHECKS))
lint-types:
	$(call quietly,$(PYTHON_BIN)/mypy)
lint-ruff:
	$(call quietly,$(PYTHON_BIN)/ruff check)
lint-format:
	$(call quietly,$(PYTHON_BIN)/ruff format --check)
lint-imports:
	$(call quietly,$(PYTHON_BIN)/lint-imports)
lint-compose:
	$(call quietly,$(PYTHON_BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yaml)
lint-dockerfile:
	$(call quietly,$(PYTHON_BIN)/hadolint --no-color Dockerfile)
lint-scripts:
	$(call quietly,for script in $(SHELL_SCRIPTS); do bash -n "$$script"; done && $(PYTHON_BIN)/shellcheck $(SHELL_SCRIPTS))

# UPGRADE=1 takes new versions; without it the pins stay and only what requirements*.in changed is resolved again.
requirements: export UV_CUSTOM_COMPILE_COMMAND := make requirements
# The system's certificates, as in scripts/setup.
requirements: export UV_SYSTEM_CERTS := $(if $(wildcard /etc/ssl/certs/ca-certificates.crt),1,0)
requirements: setup ## compile requirements*.in into the pinned requirements*.txt
	@for set in requirements requirements-lab; do \
		$(PYTHON_BIN)/uv pip compile --quiet --python-version 3.11 $(if $(UPGRADE),--upgrade) $$set.in --output-file $$set.txt; \
	done
	@scripts/setup

clean: ## remove caches and build leftovers (.venv and .lab stay)
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build include/*.egg-info
	@find . \( -name .venv -o -name .git -o -name .lab \) -prune -o -name __pycache__ -type d -exec rm -rf {} +
