# The verbs. Needs Python 3.11 or newer, make and git; everything else is installed into .venv, pinned.
PYTHON := .venv/bin/python
MAKEFLAGS += --no-print-directory
JOBS := 2# pytest processes at a time

.PHONY: help demo up test test-fast test-store bench analytics-bench retention-bench chaos faults crashpoints takeover lint fmt types imports lock clean run-env dev-env

help:
	@echo "make demo    send one real message through everything, on throw-away servers, and show what happened"
	@echo "make up      run everything on this machine and keep it running (data in .turnline)"
	@echo "make test-fast    tests that need no server: engine, integrations, sandbox (under a minute)"
	@echo "make test-store   tests of the database layer, on a Postgres that they start"
	@echo "make test    lint, types, import rules and the whole test suite, on servers it starts itself"
	@echo "make bench   the benchmarks, beside their floor"
	@echo "make analytics-bench   what analytics cost, with 100,000 turns"
	@echo "make retention-bench   what turns feel while 1,000,000 events of old sessions are deleted"
	@echo "make chaos   two thousand messages while a worker is killed every three seconds and the broker is emptied"
	@echo "make faults  500 messages under each of 19 faults, on Valkey and on RabbitMQ (takes a quarter of an hour)"
	@echo "make crashpoints   a process killed at every crash point, and at every ordered pair of them"
	@echo "make takeover   20,000 random schedules in which a person takes a session over, and no reply of the agent may follow"
	@echo "make lint    ruff, mypy, import rules"
	@echo "make fmt     format the code"
	@echo "make lock    pin the dependencies again (needs uv)"
	@echo "make clean   remove caches; .venv and .turnline stay"

run-env:
	@requirements/install.sh run

dev-env:
	@requirements/install.sh dev

demo: run-env
	@$(PYTHON) -m cli.main demo

up: run-env
	@exec $(PYTHON) -m cli.main up

# tests/conftest.py fails tests in these directories that use a server, and test_tiers.py compares the two lists.
FAST_TESTS := tests/engine tests/integrations tests/sandbox tests/support

test-fast: dev-env
	$(PYTHON) -m pytest -n $(JOBS) $(FAST_TESTS)

test-store: dev-env
	$(PYTHON) -m pytest -n $(JOBS) --dist loadfile tests/store

test: lint
	$(PYTHON) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=30

lint: dev-env
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

fmt: dev-env
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: dev-env
	$(PYTHON) -m benchmarks.turns
	$(PYTHON) -m benchmarks.fairness

analytics-bench: dev-env
	$(PYTHON) -m benchmarks.analytics

retention-bench: dev-env
	$(PYTHON) -m benchmarks.retention

chaos: dev-env
	$(PYTHON) -m benchmarks.chaos

faults: dev-env
	$(PYTHON) -m benchmarks.faults

crashpoints: dev-env
	$(PYTHON) -m benchmarks.crashpoints

takeover: dev-env
	$(PYTHON) -m benchmarks.takeover

lock:
	requirements/compile.sh

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .schemathesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
