"""Rows of claim_turn and write_turn as values of the engine, and a `TurnCommit` as the JSON that write_turn reads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any
from uuid import UUID

from engine.enums import ApprovalStatus, Effect, EventKind, Source, ToolCallState, TurnStatus
from engine.errors import Rejected
from engine.events import Event
from engine.sentences import sentence, with_sentences
from engine.tools.spec import IntegrationSpec, ToolSpec
from engine.turn.commit import CommitResult, Finish, Outcome, Park, Reserved, SettledCall, TurnCommit
from engine.turn.context import Limits, TurnContext
from engine.turn.pending_calls import Approval, Pending
from engine.turn.ports import ResumePoint
from engine.turn.prompt import instructions

log = logging.getLogger(__name__)

DETAIL_MAX_LENGTH = 2000  # characters of turns.error_detail

Row = Mapping[str, Any]
Secrets = Callable[[UUID, UUID, Mapping[str, str]], dict[str, str]]
"""(workspace, integration, ciphertexts by name) -> plain secrets by name. Raises Rejected for a key that is gone."""


def decode_context(turn_id: UUID, row: Row, limits: Limits, secrets: Secrets) -> TurnContext:
    """Return the inputs of the turn that a row of claim_turn holds."""
    agent = row["o_agent"]["agent"]
    integrations: dict[str, list[Row]] = {}
    for item in row["o_integrations"] or ():
        integrations.setdefault(item["tool_id"], []).append(item)
    return TurnContext(
        turn_id=turn_id,
        session_id=row["o_session"],
        workspace_id=row["o_workspace"],
        agent_id=UUID(agent["id"]),
        agent_version=agent["version"],
        model_provider=agent["model_provider"],
        model_name=agent["model_name"],
        temperature=agent["temperature"],
        max_tokens=agent["max_tokens"],
        instructions=instructions(agent["name"], agent["system_prompt"], agent["conversation_style"]),
        tools=tuple(_tool(item, integrations.get(item["id"], []), row["o_workspace"], secrets) for item in row["o_agent"]["tools"]),
        limits=limits,
        opened_at_offset=row["o_opened_at_offset"],
        budgeted=row["o_budgeted"],
    )


def decode_resume_point(row: Row) -> ResumePoint:
    """Return where a row of claim_turn says that the turn resumes."""
    return ResumePoint(
        events=tuple(decode_event(item) for item in row["o_events"] or ()),
        reserved=None if row["o_attempt"] is None else Reserved(row["o_step"], row["o_attempt"]),
        pending={item["tool_call_id"]: _pending(item) for item in row["o_pending"] or ()},
        elapsed_s=row["o_elapsed_s"],
        running_s=row["o_running_s"],
        attempts=row["o_attempts"],
    )


def decode_event(item: Row) -> Event:
    """Return an event of the log, with sentences in place of codes."""
    return Event(
        kind=EventKind(item["kind"]),
        source=Source(item["source"]),
        content=with_sentences(item["content"]),
        metadata=item["metadata"],
        turn_id=UUID(item["turn_id"]) if item["turn_id"] else None,
        offset=item["offset"],
    )


def decode_result(row: Row, intended: Outcome | None) -> CommitResult:
    """Return what a row of write_turn says of a commit. `intended` is the outcome that the commit asked for."""
    return CommitResult(
        tuple(decode_event(item) for item in row["o_new_messages"] or ()),
        row["o_read_through"],
        row["o_cancel_reason"],
        sentence(row["o_budget_refusal"]),
        outcome=_outcome(row["o_status"], row["o_error_class"], intended),
    )


def _outcome(status: str | None, error_class: str | None, intended: Outcome | None) -> Outcome | None:
    match status, intended:
        case None, _:
            return None
        case TurnStatus.QUEUED | TurnStatus.WAITING, Park():
            return replace(intended, error_class=error_class, for_approval=status == TurnStatus.WAITING)
        case TurnStatus.QUEUED | TurnStatus.WAITING, _:  # the session was paused before its reply was sent
            return Park(0.0, refund=True, error_class=error_class)
        case _, Finish() if intended.status == status:
            return replace(intended, error_class=error_class)
        case _:
            assert status is not None  # noqa: S101 - the first case
            return Finish(status, error_class)


def _tool(item: Row, integrations: Sequence[Row], workspace_id: UUID, secrets: Secrets) -> ToolSpec:
    usable = [one for one in integrations if one["health_status"] != "unhealthy"]
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
        offered=bool(usable) or not integrations,
    )


def _integration(item: Row, workspace_id: UUID, secrets: Secrets) -> IntegrationSpec | None:
    """Return the integration, or None if its secrets cannot be decrypted any more: then the tool fails and the turn continues."""
    integration_id = UUID(item["id"])
    try:
        decrypted = secrets(workspace_id, integration_id, item["secrets"]) if item["secrets"] else {}
    except Rejected as error:
        log.warning("an integration cannot be used: %s", error, extra={"integration_id": str(integration_id)})
        return None
    return IntegrationSpec(
        id=integration_id,
        integration_type=item["integration_type"],
        configuration=item["configuration"],
        parameter_mapping=item["parameter_mapping"],
        response_mapping=item["response_mapping"],
        secrets=decrypted,
        degraded=item["health_status"] == "degraded",
    )


def _pending(item: Row) -> Pending:
    approval = None
    if item["approval"] is not None:
        decision = ApprovalStatus(item["approval"])
        approval = Approval(decision, item["arguments_hash"], item["reason"], item["edited_arguments"], item["used"])
    return Pending(item["idempotency_key"], ToolCallState(item["state"]), approval)


def encode_commit(commit: TurnCommit, approval_s: float) -> dict[str, Any]:
    """Return the commit as write_turn reads it, without its empty parts. `approval_s`: when the approvals that it requests expire."""
    payload: dict[str, Any] = {}
    if commit.events:
        payload["events"] = [
            {"kind": event.kind, "source": event.source, "content": event.content, "metadata": event.metadata} for event in commit.events
        ]
    if commit.model_call:
        payload["model_call"] = _model_call(commit.model_call)
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
                "status": TurnStatus.WAITING if for_approval else TurnStatus.QUEUED,
                "wait_s": wait_s,
                "refund": refund,
                "error_class": error_class,
                "error_detail": _bounded(error_detail),
            }
    return payload


def _model_call(settled: SettledCall) -> dict[str, Any]:
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


def _bounded(detail: str | None) -> str | None:
    return None if detail is None else detail[:DETAIL_MAX_LENGTH]
