"""Check the data after a run: count messages that were lost or doubled, repeated tool effects and extra model calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from tests.support.invariants import violations
from tests.support.stack import Stack
from tests.system.faults.load import MODEL_CALLS, TOOL_CALLS

ACCEPTED = (
    "SELECT count(*), count(DISTINCT (session_id, message_key)) FROM events WHERE workspace_id = ANY(%s) AND kind = 'customer_message'"
)
TURNS = "SELECT status FROM turns WHERE workspace_id = ANY(%s)"
ANSWERED_TWICE = """SELECT count(*) FROM (SELECT turn_id FROM events WHERE workspace_id = ANY(%s) AND kind = 'agent_message'
           GROUP BY turn_id HAVING count(*) > 1) x"""
CALLS = "SELECT count(*) FROM model_calls WHERE workspace_id = ANY(%s)"
KEYS = "SELECT idempotency_key FROM tool_calls WHERE workspace_id = ANY(%s)"


@dataclass
class Accounting:
    """The results of a run, in numbers. `wrong` lists all problems."""

    messages: int
    answered: int = 0
    not_answered: int = 0
    lost: int = 0
    doubled: int = 0
    effects_repeated: int = 0
    model_calls: int = 0
    extra_model_calls: int = 0
    wrong: list[str] = field(default_factory=list)


def check_accounting(stack: Stack, workspaces: list[UUID], outcome: Accounting) -> None:
    """Fill in the numbers and `wrong`. No turn may be open any more."""
    accepted, distinct = stack.rows(ACCEPTED, workspaces)[0]
    turns = stack.rows(TURNS, workspaces)
    outcome.answered = sum(status == "done" for (status,) in turns)
    outcome.not_answered = len(turns) - outcome.answered
    outcome.lost = outcome.messages - distinct + max(0, distinct - len(turns))
    outcome.doubled = accepted - distinct + max(0, len(turns) - distinct) + stack.one(ANSWERED_TWICE, workspaces)
    outcome.model_calls = stack.one(CALLS, workspaces)
    outcome.extra_model_calls = outcome.model_calls - MODEL_CALLS * outcome.answered

    counts = stack.counts()
    by_key = counts["tools"].get("orders_lookup", {"by_key": {}})["by_key"]
    outcome.effects_repeated = sum(one["effects"] - 1 for one in by_key.values() if one["effects"] > 1)

    wrong = [f"{name}: {ids}" for name, ids in violations(stack.database_url).items()]
    wrong += [f"{name}: {count}" for name, count in (("lost", outcome.lost), ("doubled", outcome.doubled)) if count]
    if outcome.not_answered:
        reasons = stack.rows(
            "SELECT status, error_class, count(*) FROM turns WHERE workspace_id = ANY(%s) AND status <> 'done' GROUP BY 1, 2", workspaces
        )
        wrong.append(f"turns that ended without an answer: {reasons}")
    if outcome.effects_repeated:
        wrong.append(f"{outcome.effects_repeated} tool effects were repeated")
    keys = {key for (key,) in stack.rows(KEYS, workspaces)}
    if not by_key.keys() <= keys or (not outcome.not_answered and len(by_key) != TOOL_CALLS * outcome.messages):
        wrong.append(f"the tool saw {len(by_key)} keys, the database has {len(keys)}, {TOOL_CALLS * outcome.messages} were expected")
    if counts["model"]["requests"] > outcome.model_calls:
        wrong.append(f"the provider saw {counts['model']['requests']} requests, the ledger has {outcome.model_calls}")
    if counts["bad_requests"]:
        wrong.append(f"the provider refused requests: {counts['bad_requests'][:3]}")
    outcome.wrong += wrong
