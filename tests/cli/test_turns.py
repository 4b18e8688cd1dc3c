"""`turnline turns --stuck` and `turnline turn`, as processes: the reason why a turn is unclaimed, and everything about one turn."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb

from store.conversations import intake, session_control
from store.conversations import redrive as store_redrive
from store.database import Database
from tests.support.cli import turnline as run_turnline
from tests.support.db import fetch
from tests.support.factories import Tenant, tenant

MESSAGE_TEXT = "my cat is called Mozart"


@pytest.fixture
def turnline(tmp_path: Path, database_url: str) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        result = run_turnline(*arguments, directory=tmp_path, DATABASE_URL=database_url, COLUMNS="100")
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


async def open_turn(database: Database, created: Tenant, session_id: UUID, text: str = MESSAGE_TEXT) -> UUID:
    accepted = await intake.accept(database, created.workspace_id, session_id, text)
    assert accepted.turn_id is not None
    return accepted.turn_id


async def claim(database: Database, turn_id: UUID, lease_s: float = 60.0, attempts: int = 5) -> dict[str, Any]:
    return await database.call("SELECT * FROM claim_turn($1, gen_random_uuid()::text, $2, $3, 400)", turn_id, lease_s, attempts)


async def die(database: Database, turn_id: UUID) -> None:
    while (await claim(database, turn_id, 0.01, 1))["o_outcome"] != "dead":
        await asyncio.sleep(0.02)


async def commit(database: Database, claimed: dict[str, Any], turn_id: UUID, number: int, **change: Any) -> None:
    arguments = (claimed["o_workspace"], claimed["o_session"], turn_id, claimed["o_fence"], number)
    await database.call("SELECT * FROM write_turn($1, $2, $3, $4, $5, $6)", *arguments, Jsonb(change))


async def test_stuck_turns_are_listed_with_a_reason(turnline: Callable[..., str], database: Database, database_url: str):
    created = await tenant(database, sessions=8)
    undispatched, lost, parked, paused, waiting, pending, fresh, quarantined = created.session_ids
    turns = {session_id: await open_turn(database, created, session_id) for session_id in created.session_ids[:-1]}
    await claim(database, turns[lost], 0.01)
    claimed = await claim(database, turns[parked])
    call = {"step": 0, "attempt": 0, "state": "failed"}
    outcome = {"status": "queued", "wait_s": 600, "refund": True, "error_class": "RateLimited", "error_detail": "429"}
    await commit(database, claimed, turns[parked], 0, model_call=call, outcome=outcome)
    await session_control.set_mode(database, created.workspace_id, paused, "paused", by="me")
    await open_turn(database, created, quarantined)
    for number in range(3):
        await die(database, await open_turn(database, created, quarantined, f"{number}"))
    turns[quarantined] = await open_turn(database, created, quarantined)
    fetch(database_url, "UPDATE turns SET status = 'waiting', not_before = now() + interval '1 hour' WHERE id = %s", turns[waiting])
    fetch(database_url, "UPDATE turns SET admission = 'pending' WHERE id = %s", turns[pending])
    fetch(database_url, "UPDATE turns SET opened_at = now() - interval '5 minutes', claimed_at = claimed_at - interval '5 minutes'")
    fetch(database_url, "UPDATE turns SET opened_at = now() WHERE id = %s", turns[fresh])

    report = json.loads(turnline("turns", "--stuck", "--json"))

    reasons = {UUID(row["id"]): row["why"] for row in report["open"]}
    expected = {
        undispatched: "it was never dispatched: is the maintenance worker running?",
        lost: "its worker was lost: the lease ran out at …; not dispatched since",
        parked: "not before …, after RateLimited",
        paused: "its session is paused",
        waiting: "it waits for an approval until …",
        pending: "it is pending: its workspace is at its in-flight limit",
        quarantined: f"its session has been quarantined since …: look at its dead turns, then `turnline release {quarantined}`",
    }
    without_times = {turn_id: re.sub(r"\d\d-\d\d \d\d:\d\d:\d\dZ", "…", reason) for turn_id, reason in reasons.items()}
    assert without_times == {turns[session_id]: reason for session_id, reason in expected.items()}
    assert [row["error_class"] for row in report["ended"]] == ["AttemptsSpent"] * 3
    text = turnline("turns", "--stuck")
    assert all(str(turn_id) in text for turn_id in reasons)
    assert "never dispatched" in text
    assert max(map(len, text.splitlines())) <= 100
    assert MESSAGE_TEXT not in text + json.dumps(report)


async def test_dead_turns_are_listed_until_they_are_redriven(turnline: Callable[..., str], database: Database):
    created = await tenant(database, sessions=2)
    turn_ids = [await open_turn(database, created, session_id) for session_id in created.session_ids]
    for turn_id in turn_ids:
        await die(database, turn_id)
    claimed = await claim(database, later := await open_turn(database, created, created.session_ids[0], "later"))
    reply = {"kind": "agent_message", "source": "ai_agent", "content": {"text": "Yes."}}
    await commit(database, claimed, later, 0, events=[reply], outcome={"status": "done"})

    text = turnline("turns", "--dead")

    assert all(str(turn_id) in text for turn_id in turn_ids)
    assert "cannot be redriven: answered since" in " ".join(text.split())
    await store_redrive.redrive(database, created.workspace_id, turn_ids[1], from_scratch=False, by="me", in_flight_limit=200)
    ended = {row["id"]: row["not_redrivable"] for row in json.loads(turnline("turns", "--dead", "--json", "--since", "7d"))["ended"]}
    assert ended.get(str(turn_ids[0])) == "answered since"
    assert str(turn_ids[1]) not in ended


async def test_turn_shows_everything_about_a_turn(turnline: Callable[..., str], database: Database, database_url: str):
    """A lost worker, an approved tool call, unpriced and estimated model calls, a failure and a redrive are all shown."""
    created = await tenant(database)
    turn_id = await open_turn(database, created, created.session_id)
    await claim(database, turn_id, 0.01)
    await asyncio.sleep(0.05)
    claimed = await claim(database, turn_id, 1.0)
    usage = {"input_tokens": 120, "cached_input_tokens": 20, "output_tokens": 30, "latency_ms": 900, "ttft_ms": 80}
    paid = {"step": 0, "attempt": 1, "state": "settled", "cost_usd": "0.00123", "price_source": "t", **usage}
    call_event = {
        "kind": "tool_call",
        "source": "ai_agent",
        "content": {"tool_call_id": "c1", "tool_name": "refund", "arguments": {"order": 41}},
    }
    tool_call = {"tool_call_id": "c1", "step": 0, "position": 0, "tool_name": "refund", "arguments": {"order": 41}, "arguments_hash": "h"}
    intent = [tool_call | {"idempotency_key": f"{turn_id}", "effect": "unsafe"}]
    await commit(database, claimed, turn_id, 0, model_call=paid, events=[call_event], tool_calls=intent)
    result_event = {
        "kind": "tool_result",
        "source": "system",
        "content": {"tool_call_id": "c1", "tool_name": "refund", "status": "succeeded"},
    }
    result = {"tool_call_id": "c1", "state": "succeeded", "attempts": 1, "latency_ms": 45, "error": None, "integration_id": None}
    reserve = {"step": 1, "attempt": 0, "provider": "openai", "model": "gpt-4o", "last_message_offset": 0}
    await commit(database, claimed, turn_id, 1, events=[result_event], tool_results=[result], reserve=reserve)
    estimated = {"step": 1, "attempt": 0, "state": "settled", "estimated": True, "input_tokens": 77, "output_tokens": 5}
    failed = {"kind": "status_update", "source": "system", "content": {"status": "failed", "error_class": "BudgetSpent"}}
    outcome = {"status": "failed", "error_class": "BudgetSpent", "error_detail": "no reply after 8 model calls"}
    await commit(database, claimed, turn_id, 2, model_call=estimated, events=[failed], outcome=outcome)
    fetch(
        database_url,
        "INSERT INTO approvals (workspace_id, session_id, turn_id, tool_call_id, tool_name, arguments_hash, status, expires_at,"
        " decided_by, decided_at) VALUES (%s, %s, %s, 'c1', 'refund', 'h', 'approved', now(), 'Grace', now())",
        *(created.workspace_id, created.session_id, turn_id),
    )
    await store_redrive.redrive(database, created.workspace_id, turn_id, from_scratch=False, by="Ada", in_flight_limit=200)

    text = turnline("turn", str(turn_id))

    flat = " ".join(text.split())
    for expected in (
        f"turn {turn_id}",
        f"session {created.session_id}",
        "status queued",
        "attempts 0 since it was last redriven, 1 redrives",
        "agent version 1, ",
        "WorkerLost while it waited for the model",
        "BudgetSpent no reply after 8 model calls",
        "customer_message customer",
        "status_update system failed",
        "status_update system redriven by Ada",
        "0.0 unknown",
        "0.1 settled gpt-4o 120 (20) 30 0.00123 80 ms 900 ms",
        "1.0 settled gpt-4o ~77 ~5 unpriced",
        "0.0 refund succeeded 1 45 ms approved by Grace,",
        "cost 0.00123 USD (model calls: 1 estimated, 1 unpriced, 1 unknown)",
    ):
        assert expected in flat, text
    assert max(map(len, text.splitlines())) <= 100
    assert MESSAGE_TEXT not in text
    assert MESSAGE_TEXT in " ".join(turnline("turn", str(turn_id), "--contents").split())
    as_json = turnline("turn", str(turn_id), "--json")
    assert MESSAGE_TEXT not in as_json
    report = json.loads(as_json)
    assert [event["status"] for event in report["timeline"]] == [None, None, "succeeded", "failed", "redriven"]
    assert [(one["error_class"], one["detail"]) for one in report["endings"]] == [
        ("WorkerLost", "while it waited for the model"),
        ("BudgetSpent", "no reply after 8 model calls"),
    ]
    assert report["cost_usd"] == "0.0012300000"
    assert [event["content"]["text"] for event in json.loads(turnline("turn", str(turn_id), "--json", "--contents"))["timeline"][:1]] == [
        MESSAGE_TEXT
    ]
