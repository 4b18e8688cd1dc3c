"""A turn's stages, usage and cost, and the list of a session's turns, compared with rows inserted by the tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert, update
from uuid_utils.compat import uuid7

from api.schemas import turns
from models import ModelCallRow, ToolCallRow, TurnRow
from store.conversations.turn_view import stages_ms
from tests.support.api_server import Tenant, opened, run_in_thread

T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def after(ms: int) -> datetime:
    return T0 + timedelta(milliseconds=ms)


def write(acme: Tenant, *statements: Any) -> None:
    """Execute statements as the application's role."""

    async def do() -> None:
        async with opened(acme.service.database_url) as database, database.transaction(acme.workspace_id) as db:
            for statement in statements:
                await db.execute(statement)

    run_in_thread(do)


def model_call(acme: Tenant, session_id: str, turn_id: str, step: int, attempt: int, state: str, **values: Any) -> Any:
    row = {"turn_id": UUID(turn_id), "step": step, "attempt": attempt, "workspace_id": acme.workspace_id, "session_id": UUID(session_id)}
    return insert(ModelCallRow).values(row | {"provider": "openai", "model": "gpt-4o", "state": state} | values)


def tool_call(acme: Tenant, session_id: str, turn_id: str, step: int, position: int, **values: Any) -> Any:
    name = f"c{step}{position}"
    row = {"session_id": UUID(session_id), "tool_call_id": name, "workspace_id": acme.workspace_id, "turn_id": UUID(turn_id)}
    rest = {"step": step, "position": position, "tool_name": "orders", "arguments_hash": "", "idempotency_key": f"{turn_id}{name}"}
    return insert(ToolCallRow).values(row | rest | {"state": "succeeded", "attempts": 1} | values)


def change_turn(turn_id: str, **values: Any) -> Any:
    return update(TurnRow).where(TurnRow.id == UUID(turn_id)).values(values)


def queued(acme: Tenant) -> tuple[str, str]:
    session_id = acme.session()["id"]
    return session_id, acme.message(session_id)["turn"]["id"]


def test_queued_turn_has_no_durations(acme: Tenant):
    session_id, turn_id = queued(acme)

    found = acme.call("GET", f"/v1/turns/{turn_id}", 200)

    turns.Turn.model_validate(found)
    assert (found["session_id"], found["status"], found["attempts"], found["error"]) == (session_id, "queued", 0, None)
    assert (found["opened_at_offset"], found["read_through_offset"], found["started_at"], found["settled_at"]) == (0, None, None, None)
    assert found["stages_ms"] == {"queued": None, "model": None, "tool": None, "commit": None, "total": None}
    assert (found["cost_usd"], found["model_calls"], found["tool_calls"]) == (None, [], [])
    assert set(found["usage"].values()) == {0}
    assert found["task_id_prefix"] == f"turn:{turn_id}:"


def test_durations_tokens_and_cost_of_a_turn(acme: Tenant):
    session_id, turn_id = queued(acme)
    tokens = {"input_tokens": 100, "cached_input_tokens": 40, "cache_write_tokens": 5, "output_tokens": 20, "reasoning_tokens": 8}
    write(
        acme,
        change_turn(turn_id, opened_at=T0, started_at=after(50), settled_at=after(1000), status="failed", attempts=2, agent_version=3),
        change_turn(turn_id, error_class="BudgetSpent", error_detail="no more", read_through_offset=0),
        model_call(acme, session_id, turn_id, 0, 0, "unknown", latency_ms=100, error_class="ReplyLost"),
        model_call(
            acme, session_id, turn_id, 0, 1, "settled", latency_ms=200, ttft_ms=30, cost_usd="0.0001000000", price_source="t", **tokens
        ),
        model_call(acme, session_id, turn_id, 1, 0, "settled", latency_ms=300, cost_usd="0.0000200000", price_source="t", **tokens),
        model_call(acme, session_id, turn_id, 2, 0, "settled", latency_ms=None),
        tool_call(acme, session_id, turn_id, 0, 1, latency_ms=70, state="failed", error="No such order."),
        tool_call(acme, session_id, turn_id, 0, 0, latency_ms=90),
        tool_call(acme, session_id, turn_id, 1, 0, latency_ms=10),
        tool_call(acme, session_id, turn_id, 2, 0, latency_ms=None, state="running"),
    )

    found = acme.call("GET", f"/v1/turns/{turn_id}", 200)

    turns.Turn.model_validate(found)
    assert found["stages_ms"] == {"queued": 50, "model": 600, "tool": 100, "commit": 250, "total": 1000}
    assert found["usage"] == {name: 2 * count for name, count in tokens.items()}
    assert (found["cost_usd"], found["unpriced_calls"], found["unknown_calls"]) == ("0.00012", 1, 1)
    assert found["error"] == {"class": "BudgetSpent", "detail": "no more"}
    assert (found["opened_at"], found["started_at"]) == ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.050000Z")
    assert [(call["step"], call["attempt"], call["state"]) for call in found["model_calls"]] == [
        (0, 0, "unknown"),
        (0, 1, "settled"),
        (1, 0, "settled"),
        (2, 0, "settled"),
    ]
    assert [call["tool_call_id"] for call in found["tool_calls"]] == ["c00", "c01", "c10", "c20"]
    assert found["tool_calls"][1] | {"error": "No such order.", "state": "failed", "position": 1} == found["tool_calls"][1]


@pytest.mark.parametrize(
    ("started", "settled", "expected"),
    [
        (None, None, (None, None, None, None, None)),
        (None, 70, (None, None, None, None, 70)),  # cancelled before a worker came
        (20, None, (20, 500, 0, None, None)),
        (20, 100, (20, 500, 0, 0, 100)),  # calls of an abandoned attempt overlap those of the next one
        (-5, 600, (0, 500, 0, 105, 600)),  # two clocks differ
    ],
)
def test_stages_are_null_until_known_and_never_negative(started: int | None, settled: int | None, expected: tuple[int | None, ...]):
    times = {"opened_at": T0, "started_at": started, "settled_at": settled}
    row = {name: after(value) if isinstance(value, int) else value for name, value in times.items()}

    assert tuple(stages_ms(row, [{"latency_ms": 500}, {"latency_ms": None}], []).values()) == expected


def test_turns_of_a_session_are_paged(acme: Tenant):
    session_id, first = queued(acme)
    statements = [
        insert(TurnRow).values(
            id=uuid7(), workspace_id=acme.workspace_id, session_id=UUID(session_id), opened_at_offset=offset, status="done", settled_at=T0
        )
        for offset in range(1, 6)
    ]
    write(acme, *statements)
    acme.message(acme.session()["id"])  # another session's turn

    seen: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = acme.call("GET", f"/v1/sessions/{session_id}/turns", 200, params={"limit": 2, "include_total": True, **cursor})
        turns.Turns.model_validate(page)
        seen += page["items"]
        assert page["total_count"] == 6
        assert page["has_more"] == (page["next_cursor"] is not None)
        if not page["has_more"]:
            break
        cursor = {"after": page["next_cursor"]}

    assert [item["opened_at_offset"] for item in seen] == [5, 4, 3, 2, 1, 0]
    assert (seen[-1]["id"], seen[-1]["status"], seen[0]["status"]) == (first, "queued", "done")
    assert acme.call("GET", f"/v1/sessions/{acme.session()['id']}/turns", 200)["items"] == []


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1e3", "١", "9" * 10, "\u0000"])
def test_invalid_cursor_returns_422(acme: Tenant, cursor: str):
    session_id, _ = queued(acme)
    answer = acme.http.get(f"/v1/sessions/{session_id}/turns", params={"after": cursor})

    assert answer.status_code == 422, answer.text


def test_turns_of_another_workspace_return_404(acme: Tenant, other: Tenant):
    session_id, turn_id = queued(acme)

    for path in (f"/v1/turns/{turn_id}", f"/v1/sessions/{session_id}/turns", f"/v1/turns/{uuid7()}", f"/v1/sessions/{uuid7()}/turns"):
        assert other.call("GET", path, 404)["code"] == "NOT_FOUND"
    for path in ("/v1/turns/x", "/v1/sessions/x/turns"):
        other.call("GET", path, 422)


def test_turn_does_not_contain_message_text(acme: Tenant):
    session_id = acme.session()["id"]
    turn_id = acme.message(session_id, "my secret word is xyzzy")["turn"]["id"]

    for path in (f"/v1/turns/{turn_id}", f"/v1/sessions/{session_id}/turns"):
        assert "xyzzy" not in acme.http.get(path).text


def test_every_field_of_a_turn_is_described(acme: Tenant):
    schemas = acme.http.get("/openapi.json").json()["components"]["schemas"]
    for name in ("Turn", "TurnSummary", "TurnError", "Stages", "TokenCounts", "ModelCall", "ToolCall"):
        bare = [field for field, schema in schemas[name]["properties"].items() if "description" not in schema]
        assert not bare, f"{name}: {bare}"
