"""Metrics of real workers: turns that they ran, tools that they called, and the queues' lengths."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from store.conversations import intake
from store.database import Database
from tasks.dispatcher import Dispatcher
from tests.support.factories import tenant
from tests.support.prometheus_text import Samples, scrape, value
from tests.support.servers import free_port, until
from tests.support.stack import TOOL, Process, Stack


def metrics_url(process: Process) -> str:
    """Return the address of the worker's metrics, as it logs it; empty before that."""
    for line in process.log.read_text().splitlines():
        if '"Serving metrics"' in line:
            return f"http://127.0.0.1:{json.loads(line)['port']}/metrics"
    return ""


def metrics(process: Process) -> Samples:
    return scrape(metrics_url(process))


@pytest.fixture(scope="module", autouse=True)
def port(stack: Stack) -> int:
    stack.env["TURNLINE_METRICS_PORT"] = str(free_port())
    return int(stack.env["TURNLINE_METRICS_PORT"])


async def test_finished_turn_is_counted_with_stages_calls_tokens_and_cost(stack: Stack, database: Database, dispatcher: Dispatcher):
    worker = stack.worker()
    until(lambda: metrics_url(worker), 20)
    integration = {"configuration": {"url": f"{stack.sandbox_url}/tools/orders_lookup"}}
    made = await tenant(database, sessions=2, tools=({**TOOL, "integration": integration, "configuration": {"approval": "never"}},))
    for session_id, text in zip(made.session_ids, ("Is order 41 paid?", "metrics-canary [[fault 400-context x*]]"), strict=True):
        accepted = await intake.accept(database, made.workspace_id, session_id, text)
        assert accepted.turn_id is not None
        dispatcher.dispatch(accepted.turn_id)
    stack.drained()
    until(lambda: value(metrics(worker), "turnline_turn_duration_seconds_count") == 2, 20)
    found = metrics(worker)

    assert value(found, "turnline_turns_total", outcome="done") == 1
    assert value(found, "turnline_turns_total", outcome="failed") == 1
    assert value(found, "turnline_turn_claims_total", outcome="claimed") == 2
    assert value(found, "turnline_turn_stage_seconds_count", stage="wait") == 2
    assert (value(found, "turnline_turn_stage_seconds_count", stage="commit") or 0) >= 4
    assert value(found, "turnline_model_calls_total", provider="openai", outcome="settled") == 2
    assert value(found, "turnline_model_calls_total", provider="openai", outcome="Rejected") == 1
    ledger = stack.rows("SELECT sum(input_tokens), sum(output_tokens), sum(cost_usd) FROM model_calls")[0]
    assert value(found, "turnline_model_tokens_total", provider="openai", kind="input") == ledger[0]
    assert value(found, "turnline_model_tokens_total", provider="openai", kind="output") == ledger[1]
    assert value(found, "turnline_model_cost_dollars_total", provider="openai") == pytest.approx(float(ledger[2]))
    assert value(found, "turnline_tool_calls_total", outcome="succeeded") == 1
    assert value(found, "turnline_queue_wait_seconds_count", queue="turns") == 2
    assert value(found, "turnline_leases_held") == 0
    assert value(found, "turnline_pool_running") == 0
    assert value(found, "turnline_pool_limit") == 200
    assert (value(found, "turnline_pool_loop_lag_worst_seconds") or 0) >= 0
    text = httpx.get(metrics_url(worker), trust_env=False).text
    assert not any(secret in text for secret in ("metrics-canary", str(made.workspace_id), str(made.session_id), "orders_lookup"))
    worker.stop()


async def test_each_worker_has_its_own_metrics_port_and_only_maintenance_reports_queues(
    stack: Stack, database: Database, dispatcher: Dispatcher, tmp_path: Path
):
    workers = [stack.worker(queues="tools"), stack.worker(queues="maintenance")]
    until(lambda: all(metrics_url(worker) for worker in workers), 20)
    made = await tenant(database, sessions=3)
    for session_id in made.session_ids:
        accepted = await intake.accept(database, made.workspace_id, session_id, "queued")
        assert accepted.turn_id is not None
        dispatcher.dispatch(accepted.turn_id)
    until(lambda: (value(metrics(workers[1]), "turnline_queue_messages", queue="turns") or 0) >= 3, 20)
    tools, maintenance = (metrics(worker) for worker in workers)

    assert len({metrics_url(worker) for worker in workers}) == 2
    assert value(tools, "turnline_queue_messages", queue="turns") is None
    assert 0 < (value(maintenance, "turnline_queue_oldest_age_seconds", queue="turns") or 0) < 60
    assert value(maintenance, "turnline_queue_messages", queue="messages") == 0
    assert value(maintenance, "turnline_broker_up") == value(maintenance, "turnline_database_up") == 1
    assert httpx.get(metrics_url(workers[0]).replace("/metrics", "/"), trust_env=False).status_code == 404
    behind = httpx.get(metrics_url(workers[0]), headers={"X-Forwarded-For": "203.0.113.9"}, trust_env=False)
    assert behind.status_code == 403


async def test_job_counts_come_from_the_worker_and_job_times_from_the_database(stack: Stack):
    stack.beat()
    worker = stack.worker(queues="maintenance")
    until(lambda: metrics_url(worker), 20)

    until(lambda: (value(metrics(worker), "turnline_job_runs_total", job="turns.sweep", outcome="done") or 0) >= 1, 30)
    until(lambda: value(metrics(worker), "turnline_job_last_success_timestamp_seconds", job="turns.sweep") is not None, 30)
