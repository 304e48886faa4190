# Every target sets up .venv by itself: Python 3.11 or newer, pip and make are all that is needed.
PYTHON ?= python3
WORLD ?= synthetic
PORT ?= 3000
# Processes that share the tests; each takes a core and up to 1.5 GiB.
JOBS ?= 2
TOGETHER = --numprocesses $(JOBS) --dist loadscope --no-loadscope-reorder
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp-$(shell cat constraints.txt pyproject.toml | cksum | tr ' ' '-')
BROWSER = $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
export OMP_WAIT_POLICY := PASSIVE
# As pip does by itself: trust the certificates that the system trusts.
export UV_SYSTEM_CERTS := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo run doctor test test-fast test-services check bench bench-ingest bench-rollups bench-features docs clean

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
	$$uv -c constraints.txt -e '.[dev]' || { echo "uv failed; pip, which has settings of its own, goes on"; \
		$$installer install --quiet -c constraints.txt -e '.[dev]'; }
	@$(BIN)/python -m crypto_assets.openmp
	@rm -f $(VENV)/.stamp-*
	@touch $@

demo: setup ## the whole graph on the simulated market (WORLD=recorded for real recordings)
	CRYPTO_ASSETS_WORLD=$(WORLD) $(BIN)/crypto-assets demo

run: setup ## the web UI (PORT=3000) with the simulated market behind it; Ctrl-C stops both
	CRYPTO_ASSETS_WORLD=$(WORLD) $(BIN)/crypto-assets run --port $(PORT)

doctor: setup ## look whether this machine has what a run needs
	@CRYPTO_ASSETS_WORLD=$(WORLD) $(BIN)/crypto-assets doctor

test: setup ## all tests that a fresh machine can run offline
	$(BIN)/python -m pytest -m "not services" $(TOGETHER)

test-fast: setup ## the quick part of them
	$(BIN)/python -m pytest -m "not services and not slow" $(TOGETHER)

test-services: setup ## tests that need a browser; installs Chromium where it may, else says why it skips
	@$(if $(BROWSER),,timeout 300 sh -c "apt-get -qq update && apt-get -qq install -y chromium" >/dev/null || true)
	$(BIN)/python -m pytest -m services -rs

check: setup ## style, types and architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check crypto_assets crypto_assets_tests benchmarks

bench: bench-ingest bench-rollups bench-features ## this platform next to named peers (BENCH="--rounds 9")

bench-ingest: setup ## ingestion next to ccxt, python-binance, freqtrade and pandas (BENCH="--only rest")
	$(BIN)/python benchmarks/ingest.py $(BENCH)

bench-rollups: setup ## roll-ups next to Polars and pandas, and a day next to all days
	$(BIN)/python benchmarks/rollups.py $(BENCH)

bench-features: setup ## features and labels next to pandas
	$(BIN)/python benchmarks/features.py $(BENCH)

docs: setup ## the data dictionary, from the tables' contracts
	$(BIN)/crypto-assets dictionary > docs/data_dictionary.md

clean: ## remove what was made here: the environment, caches and every warehouse in data/
	rm -rf $(VENV) data benchmarks/.venv-peers benchmarks/results dbt_features/target .pytest_cache .ruff_cache .hypothesis
