# Every target sets up .venv by itself: Python 3.11 or newer, pip and make are all that is needed.
PYTHON ?= python3
WORLD ?= synthetic
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp-$(shell cat constraints.txt pyproject.toml | cksum | tr ' ' '-')
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-services check clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## install everything into .venv

$(STAMP): constraints.txt pyproject.toml
	@echo "setting up $(VENV) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || $(PYTHON) -m venv --without-pip $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 && installer="$(BIN)/python -m pip" \
		|| installer="$(PYTHON) -m pip --python $(BIN)/python"; \
	$$installer install --quiet uv && uv="$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python" \
		|| uv="$$installer install --quiet"; \
	$$uv -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/.stamp-*
	@touch $@

demo: setup ## the whole graph on the simulated market (WORLD=recorded for real recordings)
	CRYPTO_ASSETS_WORLD=$(WORLD) $(BIN)/crypto-assets demo

test: setup ## all tests that a fresh machine can run offline
	$(BIN)/python -m pytest -m "not services"

test-fast: setup ## the quick part of them
	$(BIN)/python -m pytest -m "not services and not slow"

test-services: setup ## tests that need a browser; says why it skips where one is missing
	$(BIN)/python -m pytest -m services -rs || test $$? -eq 5

check: setup ## style, types and architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check crypto_assets crypto_assets_tests

clean: ## remove what was made here, the environment included
	rm -rf $(VENV) data .dagster dbt_features/target .pytest_cache .ruff_cache .hypothesis
