.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-pooler test-uvicorn-next serve bench soak stall rolling image-check pictures docs reference check audit venv format clean

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Run the tests in several processes, file by file, in the order of tests/conftest.py.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The duration of `make soak`.
MINUTES ?= 10

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

demo: $(VENV)/.installed-demo ## Run a demo laboratory on real images
	@$(BIN)/broker demo

test: $(VENV)/.installed-test ## Run the tests
	@$(PYTEST)

test-all: $(VENV)/.installed-test ## Run all tests, including the slow ones (about 20 minutes)
	@BROKER_TEST_THOROUGH=1 $(PYTEST) -m 'not alone'

# The tests of the HTTP API.
HTTP_TESTS := tests/access tests/api tests/http tests/life_cycle tests/background/test_upkeep.py \
  tests/postgres/test_pooler.py tests/telemetry/test_metrics.py tests/web/test_pages.py

test-pooler: $(VENV)/.installed-test ## Run the tests of the HTTP API through PgBouncer in transaction mode
	@BROKER_TEST_POOLER=1 BROKER_TEST_ENGINES=required $(PYTEST) $(HTTP_TESTS)

test-uvicorn-next: $(VENV)/.installed-test ## Run the tests of the connections with the newest uvicorn
	@$(BIN)/python -m tests.support.uvicorn_next

serve: $(VENV)/.installed-demo ## Run the service with the embedded PostgreSQL
	@$(BIN)/broker serve

bench: $(VENV)/.installed-demo ## Measure the broker and the limits of this machine (about 10 minutes)
	@$(BIN)/broker bench

soak: $(VENV)/.installed-test ## Kill random processes and connections for 10 minutes, and check that no task is lost
	@$(BIN)/python -m tests.crash.soak --minutes $(MINUTES)

stall: $(VENV)/.installed-test ## Send the largest request bodies, and measure how long other clients wait (2 minutes)
	@$(BIN)/pytest -m 'alone and not thorough' tests/server/test_stall.py

rolling: $(VENV)/.installed-test ## Restart two brokers behind nginx while 1,000 tools wait (needs nginx)
	@$(BIN)/python -m tests.containers.rolling

image-check: ## Build and run the container image without a container engine (needs buildah and root)
	@tests/containers/build.sh

pictures: $(VENV)/.installed-test ## Update the screenshots of the dashboard, from the demo (needs Chromium)
	@$(BIN)/python -m tests.support.screenshots

docs: $(VENV)/.installed-test ## Build the documentation, which the service shows at /help
	@$(BIN)/python -m zensical build --clean --strict

reference: $(VENV)/.installed-test ## Generate docs/reference from the code
	@$(BIN)/python -m tests.support.reference

check: $(VENV)/.installed-test ## Check style, types, imports and known vulnerabilities
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/python -m tests.support.audit

audit: $(VENV)/.installed-test ## Check the locked versions for known vulnerabilities, if the list can be reached
	@$(BIN)/python -m tests.support.audit

format: $(VENV)/.installed-test ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

venv: $(VENV)/.installed-test ## Install everything for work on the project

clean: ## Remove installed and generated files
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "broker needs Python 3.11 or later; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: pyproject.toml requirements.lock | $(BIN)/python
	@echo 'Installing the dependencies, which takes about a minute …'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[demo]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml requirements.lock | $(BIN)/python
	@echo 'Installing the dependencies, which takes about a minute …'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[demo,test,check]'
	@touch $@ $(VENV)/.installed-demo
