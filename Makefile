# Every target makes the virtual environment and installs what is missing; running it again costs nothing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# libgomp's busy waiting stalls a step for seconds when a core is taken away.
export GOMP_SPINCOUNT ?= 1000
# Tests run many small networks: a second thread on a busy core costs more than it gives.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export MLFLOW_DISABLE_TELEMETRY ?= true

PYTEST := $(BIN)/python -m pytest
# Processes of the fast tier; a file's tests stay together, in order.
TESTERS ?= 2

.PHONY: help install demo test test-cluster test-browser test-soak check bench clean
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11-3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/pip || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Python's venv module is needed (Debian: apt-get install python3-venv)"; exit 1; }; }
	@echo "installing the tested versions (constraints.txt); the first time this takes some minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,hub]'
	@touch $@

install: $(READY) ## the virtual environment with the tested versions

demo: $(READY) ## the main job on real images, end to end
	$(BIN)/python pipelines/demo.py

test: $(READY) ## fast tier: under 8 minutes on 2 cores
	$(PYTEST) -n $(TESTERS) --dist loadfile -m "not cluster and not browser and not soak and not gpu"

test-cluster: $(READY) ## faults and restarts on local Ray clusters
	$(PYTEST) -m "cluster and not soak"

test-browser: $(READY) ## the report in a headless browser
	@command -v chromium >/dev/null || { echo "installing chromium"; \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; }
	$(PYTEST) -m "browser and not soak"

test-soak: $(READY) ## chaos and fuzzing at length
	$(PYTEST) -m soak

check: $(READY) ## lint, format, types, import rules
	@test ! -e platform/__init__.py || { echo "platform/__init__.py shadows the standard library's platform: remove it"; exit 1; }
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## ratios measured side by side in one run
	$(BIN)/python tests/bench/run.py

clean: ## remove the virtual environment and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
