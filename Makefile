# Needs Python 3.11 or newer, make and git. Everything else is installed into .venv, pinned.
PYTHON := .venv/bin/python
MAKEFLAGS += --no-print-directory
JOBS := 2# pytest processes at a time

.PHONY: help demo up test test-fast test-store bench analytics-bench retention-bench chaos faults crashpoints takeover lint fmt types imports lock clean run-env dev-env

help:
	@echo "make demo             send one message through everything on temporary servers, and show what happened"
	@echo "make up               run everything on this machine and keep it running (data in .turnline)"
	@echo "make test-fast        tests that need no server: engine, integrations, sandbox (under a minute)"
	@echo "make test-store       tests of the database layer, on a Postgres that they start"
	@echo "make test             lint, types, import rules and every test, on servers that the tests start"
	@echo "make bench            turns per second and fairness, beside a baseline"
	@echo "make analytics-bench  the cost of analytics, with 100,000 turns"
	@echo "make retention-bench  latency of turns while 1,000,000 events are deleted"
	@echo "make chaos            2,000 messages while a worker is killed every 3 s and the broker is emptied once"
	@echo "make faults           500 messages under each of 19 faults, on Valkey and RabbitMQ (15 minutes)"
	@echo "make crashpoints      kill a process at every failpoint, and at every ordered pair of them"
	@echo "make takeover         20,000 random schedules in which a person takes a session over"
	@echo "make lint             ruff, mypy and import-linter"
	@echo "make fmt              format the code"
	@echo "make lock             pin the dependencies again (needs uv)"
	@echo "make clean            remove caches; .venv and .turnline stay"

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
