"""The books after a fault: what was lost, doubled, repeated, asked again; how long it took to recover."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from tests.faults.load import MODEL_CALLS, TOOL_CALLS
from tests.faults.rig import Rig
from tests.invariants import violations

if TYPE_CHECKING:
    from tests.faults.run import Outcome

ACCEPTED = (
    "SELECT count(*), count(DISTINCT (session_id, message_key)) FROM events WHERE workspace_id = ANY(%s) AND kind = 'customer_message'"
)
TURNS = "SELECT status, opened_at, settled_at FROM turns WHERE workspace_id = ANY(%s)"
REPLIES = "SELECT count(*) FROM events WHERE workspace_id = ANY(%s) AND kind = 'agent_message'"
TWICE = """SELECT count(*) FROM (SELECT turn_id FROM events WHERE workspace_id = ANY(%s) AND kind = 'agent_message'
           GROUP BY turn_id HAVING count(*) > 1) x"""
CALLS = "SELECT count(*) FROM model_calls WHERE workspace_id = ANY(%s)"
KEYS = "SELECT idempotency_key FROM tool_calls WHERE workspace_id = ANY(%s)"


def settle_accounts(rig: Rig, workspaces: list[UUID], outcome: Outcome, spells: list[tuple[datetime, datetime]]) -> None:
    """Fill in the figures and what is wrong. Everything must have come to rest."""
    stack = rig.stack
    accepted, distinct = stack.rows(ACCEPTED, workspaces)[0]
    turns = stack.rows(TURNS, workspaces)
    outcome.answered = sum(status == "done" for status, _, _ in turns)
    outcome.ended_otherwise = len(turns) - outcome.answered
    outcome.lost = outcome.messages - distinct + max(0, distinct - len(turns))
    outcome.doubled = accepted - distinct + max(0, len(turns) - distinct) + stack.one(TWICE, workspaces)
    outcome.model_calls = stack.one(CALLS, workspaces)
    outcome.extra_model_calls = outcome.model_calls - MODEL_CALLS * outcome.answered
    outcome.recovery_s = recovery(turns, spells)

    counts = stack.counts()
    by_key = counts["tools"].get("orders_lookup", {"by_key": {}})["by_key"]
    outcome.effects_repeated = sum(one["effects"] - 1 for one in by_key.values() if one["effects"] > 1)

    wrong = [f"{name}: {ids}" for name, ids in violations(stack.database_url).items()]
    wrong += [f"{what}: {count}" for what, count in (("lost", outcome.lost), ("doubled", outcome.doubled)) if count]
    if outcome.ended_otherwise:
        why = stack.rows(
            "SELECT status, error_class, count(*) FROM turns WHERE workspace_id = ANY(%s) AND status <> 'done' GROUP BY 1, 2", workspaces
        )
        wrong.append(f"turns that ended without an answer: {why}")
    if outcome.effects_repeated:
        wrong.append(f"{outcome.effects_repeated} tool effects were repeated")
    if len(by_key) != TOOL_CALLS * outcome.messages or set(by_key) != {key for (key,) in stack.rows(KEYS, workspaces)}:
        wrong.append(f"the tool saw {len(by_key)} keys for {TOOL_CALLS * outcome.messages} calls")
    if counts["model"]["requests"] > outcome.model_calls:
        wrong.append(f"the provider saw {counts['model']['requests']} requests, the ledger holds {outcome.model_calls}")
    if counts["bad_requests"]:
        wrong.append(f"the provider refused requests: {counts['bad_requests'][:3]}")
    outcome.wrong += wrong


def recovery(turns: list[tuple[str, datetime, datetime]], spells: list[tuple[datetime, datetime]]) -> list[float]:
    """Seconds from the healing of the first fault that a turn was open in until the turn had settled; 0 where it settled before."""
    seconds = []
    for _, opened_at, settled_at in turns:
        met = next((healed for injected, healed in spells if opened_at < healed and settled_at > injected), None)
        if met is not None:
            seconds.append(max(0.0, (settled_at - met).total_seconds()))
    return seconds
