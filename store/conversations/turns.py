"""Claiming turns, writing them, sweeping up those that nobody carries."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb
from psycopg_pool import PoolTimeout

from engine.enums import ApprovalStatus, Effect, EventKind, Source, ToolCallState
from engine.errors import LeaseLost, Rejected
from engine.events import Event
from engine.model.prompt import instructions
from engine.turn.commit import CommitResult, Finish, Park, Reserved, SettledCall, TurnCommit
from engine.turn.context import IntegrationSpec, Limits, ToolSpec, TurnContext
from engine.turn.pending_calls import Approval, Pending
from engine.turn.ports import ResumePoint
from failpoints import failpoint
from store.database import Database

log = logging.getLogger(__name__)

CLAIM = "SELECT * FROM claim_turn($1, $2, $3, $4, $5)"
WRITE = "SELECT * FROM write_turn($1, $2, $3, $4, $5, $6)"
RENEW = "SELECT * FROM renew_leases($1, $2, $3)"
STOPS = "SELECT session_id, reason FROM cancel_reasons($1)"
LEASE_LOST = "TL001"

# A connection that breaks in the middle of a call leaves open whether it was committed; both calls may be sent again,
# because each recognises itself (claim_turn by its owner, write_turn by its number).
BROKEN = (psycopg.OperationalError, PoolTimeout)

Secrets = Callable[[UUID, UUID, Mapping[str, str]], dict[str, str]]
"""(workspace, integration, ciphertexts by name) -> plain secrets by name."""


@dataclass(frozen=True, slots=True)
class NotClaimed:
    """Why a turn was not claimed: settled, busy, early, paused, quarantined, not_next, no_turn, dead. `next_turn`: one to ring instead."""

    why: str
    next_turn: UUID | None = None


class Claim:
    """The right to write one turn, and what it starts with. Every write proves it with the fence."""

    def __init__(
        self, database: Database, turn_id: UUID, owner: str, row: Mapping[str, Any], *, limits: Limits, secrets: Secrets, approval_s: float
    ) -> None:
        self.database = database
        self.approval_s = approval_s
        self.turn_id = turn_id
        self.owner = owner
        self.workspace_id: UUID = row["o_workspace"]
        self.session_id: UUID = row["o_session"]
        self.fence: int = row["o_fence"]
        self.attempts: int = row["o_attempts"]
        self.last_offset = -1
        self.next_turn: UUID | None = None
        self.on_commit: Callable[[TurnCommit, CommitResult, float], None] | None = None  # (commit, result, seconds it took)
        self.outstanding: Reserved | None = None if row["o_attempt"] is None else Reserved(row["o_step"], row["o_attempt"])
        self._writes: int = row["o_writes"]
        self.context = _context(self, row, limits, secrets)
        self.resume_point = ResumePoint(
            events=tuple(_event(item) for item in row["o_events"] or ()),
            reserved=self.outstanding,
            pending={item["tool_call_id"]: _pending(item) for item in row["o_pending"] or ()},
            elapsed_s=row["o_elapsed_s"],
            running_s=row["o_running_s"],
            attempts=row["o_attempts"],
        )

    async def write(self, commit: TurnCommit) -> CommitResult:
        """Commit `commit`; sent again while the connection breaks, written once.

        Raises:
            LeaseLost: another claim holds the session; nothing was written.
            psycopg.Error: the database refuses it, or was gone for too long.
        """
        began = time.perf_counter()
        payload = Jsonb(_payload(commit, self.approval_s))
        _about_to_commit(commit)
        row = await _with_retries(
            lambda: self.database.call(
                WRITE, self.workspace_id, self.session_id, self.turn_id, self.fence, self._writes, payload, share=self.workspace_id
            )
        )
        _committed(commit)
        self._writes += 1
        self.last_offset = row["o_last_offset"]
        self.next_turn = row["o_next_turn"]
        if commit.reserve is not None:
            begun = commit.reserve.again or (row["o_cancel_reason"] is None and row["o_budget_refusal"] is None)
            self.outstanding = commit.reserve.call if begun else None
        elif commit.model_call is not None:
            self.outstanding = None
        result = CommitResult(
            tuple(_event(item) for item in row["o_new_messages"] or ()),
            row["o_read_through"],
            row["o_cancel_reason"],
            row["o_budget_refusal"],
            commit.outcome,
        )
        if self.on_commit is not None:
            self.on_commit(commit, result, time.perf_counter() - began)
        return result


async def claim(
    database: Database,
    turn_id: UUID,
    owner: str,
    *,
    lease_s: float,
    max_attempts: int,
    window: int,
    limits: Limits,
    secrets: Secrets,
    approval_s: float = 86_400.0,
) -> Claim | NotClaimed:
    """Claim a turn for `owner` (a name used by this one execution only): lease, fence and brief, in one transaction.

    `window` is how many of the session's latest events the turn's context is read from. A turn that was claimed `max_attempts` times
    without coming to a rest is ended as dead here. Approvals that the turn asks for expire after `approval_s`.
    """
    row = await _with_retries(lambda: database.call(CLAIM, turn_id, owner, lease_s, max_attempts, window))
    if row["o_outcome"] != "claimed":
        return NotClaimed(row["o_outcome"], row["o_next_turn"])
    failpoint("turn.claimed")
    return Claim(database, turn_id, owner, row, limits=limits, secrets=secrets, approval_s=approval_s)


async def renew(database: Database, held: Mapping[UUID, int], *, lease_s: float) -> set[UUID]:
    """Renew the leases of a process, session -> fence, in one statement; returns the sessions it still holds."""
    rows = await database.rows(RENEW, list(held), list(held.values()), lease_s)
    return {row["renew_leases"] for row in rows}


async def stops(database: Database, sessions: Collection[UUID]) -> dict[UUID, str]:
    """Why the turns carried in these sessions are to be stopped, by session; of those that are."""
    return {row["session_id"]: row["reason"] for row in await database.rows(STOPS, list(sessions))}


async def _with_retries(send: Callable[[], Any], *, tries: int = 6) -> dict[str, Any]:
    """What `send` returns, sent again (about 10 s in all) while the connection breaks. Raises LeaseLost for a stale fence."""
    for left in range(tries - 1, -1, -1):
        try:
            row: dict[str, Any] = await send()
            return row
        except psycopg.Error as error:
            if error.sqlstate == LEASE_LOST:
                raise LeaseLost(str(error)) from None
            # Deadlocks, lock timeouts and broken connections pass; anything else is ours to mend.
            if not left or not (isinstance(error, BROKEN) or (error.sqlstate or "").startswith(("40", "55", "57", "08", "53"))):
                raise
            log.warning("database call failed, sending it again: %s", type(error).__name__)
        except PoolTimeout:
            if not left:
                raise
        await asyncio.sleep(random.uniform(0.1, 0.2) * 2 ** (tries - left - 1))  # noqa: S311 - jitter
    raise AssertionError("unreachable")


def _context(claim: Claim, row: Mapping[str, Any], limits: Limits, secrets: Secrets) -> TurnContext:
    agent = row["o_agent"]["agent"]
    connected: dict[str, list[Mapping[str, Any]]] = {}
    for item in row["o_integrations"] or ():
        connected.setdefault(item["tool_id"], []).append(item)
    return TurnContext(
        turn_id=claim.turn_id,
        session_id=claim.session_id,
        workspace_id=claim.workspace_id,
        agent_id=UUID(agent["id"]),
        agent_version=agent["version"],
        model_provider=agent["model_provider"],
        model_name=agent["model_name"],
        temperature=agent["temperature"],
        max_tokens=agent["max_tokens"],
        instructions=instructions(agent["name"], agent["system_prompt"], agent["conversation_style"]),
        tools=tuple(_tool(item, connected.get(item["id"], []), claim.workspace_id, secrets) for item in row["o_agent"]["tools"]),
        limits=limits,
        opened_at_offset=row["o_opened_at_offset"],
        budgeted=row["o_budgeted"],
    )


def _tool(item: Mapping[str, Any], connected: Sequence[Mapping[str, Any]], workspace_id: UUID, secrets: Secrets) -> ToolSpec:
    usable = [one for one in connected if one["health_status"] != "unhealthy"]
    return ToolSpec(
        id=UUID(item["id"]),
        name=item["name"],
        description=item["description"],
        parameters=item["parameters"],
        return_schema=item["return_schema"],
        usage_guidelines=item["usage_guidelines"],
        effect=Effect(item["effect"]),
        approval=item["approval"] == "required",
        integrations=tuple(filter(None, (_integration(one, workspace_id, secrets) for one in usable))),
        offered=bool(usable) or not connected,
    )


def _integration(item: Mapping[str, Any], workspace_id: UUID, secrets: Secrets) -> IntegrationSpec | None:
    """The integration, or None where its secrets cannot be opened any more: the tool then fails, and the turn goes on."""
    integration_id = UUID(item["id"])
    try:
        opened = secrets(workspace_id, integration_id, item["secrets"]) if item["secrets"] else {}
    except Rejected as error:
        log.warning("an integration cannot be used: %s", error, extra={"integration_id": str(integration_id)})
        return None
    return IntegrationSpec(
        id=integration_id,
        integration_type=item["integration_type"],
        configuration=item["configuration"],
        parameter_mapping=item["parameter_mapping"],
        response_mapping=item["response_mapping"],
        secrets=opened,
        degraded=item["health_status"] == "degraded",
    )


def _pending(item: Mapping[str, Any]) -> Pending:
    approval = None
    if item["approval"] is not None:
        decision = ApprovalStatus(item["approval"])
        approval = Approval(decision, item["arguments_hash"], item["reason"], item["edited_arguments"], item["used"])
    return Pending(item["idempotency_key"], ToolCallState(item["state"]), approval)


def _event(item: Mapping[str, Any]) -> Event:
    return Event(
        kind=EventKind(item["kind"]),
        source=Source(item["source"]),
        content=item["content"],
        metadata=item["metadata"],
        turn_id=UUID(item["turn_id"]) if item["turn_id"] else None,
        offset=item["offset"],
    )


def _payload(commit: TurnCommit, approval_s: float) -> dict[str, Any]:
    """`commit` as write_turn reads it; parts that are empty are left out."""
    payload: dict[str, Any] = {}
    if commit.events:
        payload["events"] = [
            {"kind": event.kind, "source": event.source, "content": event.content, "metadata": event.metadata} for event in commit.events
        ]
    if commit.model_call:
        payload["model_call"] = _settled(commit.model_call)
    if commit.tool_results:
        payload["tool_results"] = [
            {
                "tool_call_id": settled.tool_call_id,
                "state": settled.outcome.status,
                "attempts": settled.outcome.requests,
                "latency_ms": settled.outcome.latency_ms,
                "error": settled.outcome.error,
                "integration_id": str(settled.outcome.integration_id) if settled.outcome.integration_id else None,
            }
            for settled in commit.tool_results
        ]
    if commit.tool_calls:
        payload["tool_calls"] = [
            {**asdict(intent), "tool_id": str(intent.tool_id) if intent.tool_id else None} for intent in commit.tool_calls
        ]
        payload["approval_s"] = approval_s
    if commit.starts:
        payload["starts"] = [asdict(start) for start in commit.starts]
    if commit.reserve:
        bound = commit.reserve.bound
        payload["reserve"] = {
            "step": commit.reserve.call.step,
            "attempt": commit.reserve.call.attempt,
            "provider": commit.reserve.provider,
            "model": commit.reserve.model,
            "last_message_offset": commit.reserve.last_message_offset,
            "again": commit.reserve.again,
            "reserved_tokens": bound.tokens if bound else None,
            "reserved_usd": None if bound is None or bound.usd is None else str(bound.usd),
        }
    match commit.outcome:
        case Finish(status, error_class, error_detail):
            payload["outcome"] = {"status": status, "error_class": error_class, "error_detail": _bounded(error_detail)}
        case Park(wait_s, refund, error_class, error_detail, for_approval):
            payload["outcome"] = {
                "status": "waiting" if for_approval else "queued",
                "wait_s": wait_s,
                "refund": refund,
                "error_class": error_class,
                "error_detail": _bounded(error_detail),
            }
    return payload


def _settled(settled: SettledCall) -> dict[str, Any]:
    row: dict[str, Any] = {
        "step": settled.call.step,
        "attempt": settled.call.attempt,
        "state": settled.state,
        "error_class": settled.error_class,
        "latency_ms": settled.latency_ms,
        "estimated": settled.estimated,
    }
    reply = settled.reply
    if reply is not None:
        row |= {
            "model": reply.model,
            "ttft_ms": reply.ttft_ms,
            "latency_ms": settled.latency_ms if settled.estimated else reply.latency_ms,
            "provider_request_id": reply.provider_request_id,
            "cost_usd": None if settled.cost.cost_usd is None else str(settled.cost.cost_usd),
            "price_source": settled.cost.price_source,
        }
        if reply.usage is not None:
            row |= asdict(reply.usage)
    return row


def _about_to_commit(commit: TurnCommit) -> None:
    """The crash points before a write."""
    failpoint("write.before_send")
    if isinstance(commit.outcome, Finish):
        failpoint("turn.before_final_commit")


def _committed(commit: TurnCommit) -> None:
    """The crash points after a write."""
    failpoint("write.committed")
    if isinstance(commit.outcome, Finish):
        failpoint("turn.final_commit")
    elif commit.tool_results:
        failpoint("tool_call.committed")
    elif commit.model_call is not None:
        failpoint("model_call.committed")


def _bounded(detail: str | None, length: int = 2000) -> str | None:
    return detail if detail is None else detail[:length]
