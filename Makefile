.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-pooler test-uvicorn-next serve bench soak stall rolling image-check pictures docs reference check audit venv format clean

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Several processes share the tests, file by file, in the order of tests/conftest.py.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# How long `make soak` goes on.
MINUTES ?= 10

help: ## List what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

demo: $(VENV)/.installed-demo ## Watch a laboratory at work, on real images
	@$(BIN)/broker demo

test: $(VENV)/.installed-test ## Run the tests
	@$(PYTEST)

test-all: $(VENV)/.installed-test ## Run all tests, those that take long included (some twenty minutes)
	@BROKER_TEST_THOROUGH=1 $(PYTEST) -m 'not alone'

# The HTTP interface, whatever its state is read by.
HTTP_TESTS := tests/access tests/api tests/http tests/life_cycle tests/background/test_upkeep.py \
  tests/postgres/test_pooler.py tests/telemetry/test_metrics.py tests/web/test_pages.py

test-pooler: $(VENV)/.installed-test ## Run the tests of the HTTP interface through PgBouncer in transaction mode
	@BROKER_TEST_POOLER=1 BROKER_TEST_ENGINES=required $(PYTEST) $(HTTP_TESTS)

test-uvicorn-next: $(VENV)/.installed-test ## Run the tests of the connections with the newest uvicorn, beyond the pin
	@$(BIN)/python -m tests.support.uvicorn_next

serve: $(VENV)/.installed-demo ## Run the service, with a database of its own
	@$(BIN)/broker serve

bench: $(VENV)/.installed-demo ## Measure it, beside what this machine allows (some ten minutes)
	@$(BIN)/broker bench

soak: $(VENV)/.installed-test ## Kill and cut everything at random for ten minutes, and count afterwards
	@$(BIN)/python -m tests.crash.soak --minutes $(MINUTES)

stall: $(VENV)/.installed-test ## Send the largest request bodies, and measure how long others wait (two minutes)
	@$(BIN)/pytest -m 'alone and not thorough' tests/server/test_stall.py

rolling: $(VENV)/.installed-test ## Restart two brokers behind nginx under 1,000 tools that wait (takes nginx)
	@$(BIN)/python -m tests.containers.rolling

image-check: ## Build the container image and run it, without a container engine (takes buildah; as root)
	@tests/containers/build.sh

pictures: $(VENV)/.installed-test ## Make README's pictures of the dashboard anew, from the demo (takes Chromium)
	@$(BIN)/python -m tests.support.screenshots

docs: $(VENV)/.installed-test ## Build the documentation, which the service shows at /help
	@$(BIN)/python -m zensical build --clean --strict

reference: $(VENV)/.installed-test ## Generate docs/reference from the code
	@$(BIN)/python -m tests.support.reference

check: $(VENV)/.installed-test ## Look for what the tests do not see: style, types, imports, known holes
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/python -m tests.support.audit

audit: $(VENV)/.installed-test ## Look the locked versions up in the list of known holes, if it can be reached
	@$(BIN)/python -m tests.support.audit

format: $(VENV)/.installed-test ## Put the code into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

venv: $(VENV)/.installed-test ## Install everything that work on the project needs

clean: ## Remove what was installed and made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "broker needs Python 3.11 or later; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: pyproject.toml requirements.lock | $(BIN)/python
	@echo 'Installing what it takes, which is a minute or so …'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[demo]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml requirements.lock | $(BIN)/python
	@echo 'Installing what it takes, which is a minute or so …'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[demo,test,check]'
	@touch $@ $(VENV)/.installed-demo
