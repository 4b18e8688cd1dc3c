"""The books once everything has come to rest: what was lost, doubled, repeated, asked again."""

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
TWICE = """SELECT count(*) FROM (SELECT turn_id FROM events WHERE workspace_id = ANY(%s) AND kind = 'agent_message'
           GROUP BY turn_id HAVING count(*) > 1) x"""
CALLS = "SELECT count(*) FROM model_calls WHERE workspace_id = ANY(%s)"
KEYS = "SELECT idempotency_key FROM tool_calls WHERE workspace_id = ANY(%s)"


@dataclass
class Books:
    """What became of the messages. `wrong` is empty when all is well."""

    messages: int
    answered: int = 0
    ended_otherwise: int = 0
    lost: int = 0
    doubled: int = 0
    effects_repeated: int = 0
    model_calls: int = 0
    extra_model_calls: int = 0
    wrong: list[str] = field(default_factory=list)


def settle_accounts(stack: Stack, workspaces: list[UUID], outcome: Books) -> None:
    """Fill in the figures and what is wrong. Everything must have come to rest."""
    accepted, distinct = stack.rows(ACCEPTED, workspaces)[0]
    turns = stack.rows(TURNS, workspaces)
    outcome.answered = sum(status == "done" for (status,) in turns)
    outcome.ended_otherwise = len(turns) - outcome.answered
    outcome.lost = outcome.messages - distinct + max(0, distinct - len(turns))
    outcome.doubled = accepted - distinct + max(0, len(turns) - distinct) + stack.one(TWICE, workspaces)
    outcome.model_calls = stack.one(CALLS, workspaces)
    outcome.extra_model_calls = outcome.model_calls - MODEL_CALLS * outcome.answered

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
    keys = {key for (key,) in stack.rows(KEYS, workspaces)}
    if not by_key.keys() <= keys or (not outcome.ended_otherwise and len(by_key) != TOOL_CALLS * outcome.messages):
        wrong.append(f"the tool saw {len(by_key)} keys, the books have {len(keys)}, {TOOL_CALLS * outcome.messages} were asked for")
    if counts["model"]["requests"] > outcome.model_calls:
        wrong.append(f"the provider saw {counts['model']['requests']} requests, the ledger holds {outcome.model_calls}")
    if counts["bad_requests"]:
        wrong.append(f"the provider refused requests: {counts['bad_requests'][:3]}")
    outcome.wrong += wrong
