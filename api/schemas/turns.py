"""What answers about turns look like; see `api/schemas/responses.py`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import ConfigDict, Field

from api.schemas.responses import Answer, ApprovalStatus, Money, Paged, TurnStatus

MsOrNull = int | None


class TurnError(Answer):
    """Why a turn did not answer, or waits."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    class_: Annotated[str, Field(alias="class", description="The kind of failure.", examples=["RateLimited", "BudgetSpent"])]
    detail: Annotated[str | None, Field(description="A sentence for an operator; no secrets and nothing of what was said.")]


class Stages(Answer):
    """Milliseconds by stage; null where the turn has not come that far."""

    queued: Annotated[MsOrNull, Field(description="From the message to the first claim by a worker.")]
    model: Annotated[MsOrNull, Field(description="Waiting for the model provider, all calls together.")]
    tool: Annotated[MsOrNull, Field(description="Waiting for tools: of each step the slowest call, together.")]
    commit: Annotated[MsOrNull, Field(description="What is left of the time since the first claim: the database, waits between attempts.")]
    total: Annotated[MsOrNull, Field(description="From the message to the turn's end.")]


class TokenCounts(Answer):
    """Tokens by kind."""

    input_tokens: Annotated[int, Field(description="All tokens read.")]
    cached_input_tokens: Annotated[int, Field(description="Of the input: read from the provider's cache.")]
    cache_write_tokens: Annotated[int, Field(description="Of the input: written to the provider's cache.")]
    output_tokens: Annotated[int, Field(description="All tokens generated.")]
    reasoning_tokens: Annotated[int, Field(description="Of the output: reasoning that is not part of the reply.")]


class ModelCall(TokenCounts):
    """One request to a model provider."""

    step: Annotated[int, Field(description="The turn's decide-and-perform pass it belongs to, from 0.")]
    attempt: Annotated[int, Field(description="Which try of that step, from 0.")]
    provider: Annotated[str, Field(description="The model vendor.")]
    model: Annotated[str, Field(description="The model that was asked for.")]
    state: Annotated[
        Literal["reserved", "settled", "unknown", "failed"],
        Field(description="reserved: on its way. settled: its usage is known. failed: not carried out. unknown: perhaps was, and billed."),
    ]
    cost_usd: Annotated[Money | None, Field(description="US dollars; null in a settled call means that no price is known.")]
    estimated: Annotated[bool, Field(description="It was cut off; its tokens are counted from what had been sent and heard.")]
    price_source: Annotated[str | None, Field(description="The price list the cost was taken from.")]
    ttft_ms: Annotated[MsOrNull, Field(description="Milliseconds to the first token.")]
    latency_ms: Annotated[MsOrNull, Field(description="Milliseconds to the end of the answer.")]
    provider_request_id: Annotated[str | None, Field(description="The vendor's name for the request, for their support.")]
    error_class: Annotated[str | None, Field(description="The kind of failure, if it failed.")]
    created_at: Annotated[datetime, Field(description="When it was reserved.")]
    settled_at: Annotated[datetime | None, Field(description="When its end was noted.")]


class ToolCall(Answer):
    """One use of a tool. Its arguments and result are in the session's log."""

    tool_call_id: Annotated[str, Field(description="As in the log's tool_call and tool_result.")]
    tool_name: Annotated[str, Field(description="As the model asked for it.")]
    step: Annotated[int, Field(description="The turn's pass that asked for it, from 0.")]
    position: Annotated[int, Field(description="Its place among the calls of that step, which run together.")]
    state: Annotated[
        Literal["requested", "awaiting_approval", "running", "succeeded", "failed", "denied", "unknown"],
        Field(description="unknown: it may or may not have happened."),
    ]
    attempts: Annotated[int, Field(description="Requests that were sent.")]
    latency_ms: Annotated[MsOrNull, Field(description="Milliseconds it took.")]
    error: Annotated[str | None, Field(description="Why it failed, as the model was told.")]
    tool_id: Annotated[UUID | None, Field(description="Null where the agent has no such tool.")]
    integration_id: Annotated[UUID | None, Field(description="What the tool was mapped to.")]
    created_at: Annotated[datetime, Field(description="When it was asked for.")]
    settled_at: Annotated[datetime | None, Field(description="When its end was noted.")]


class TurnApproval(Answer):
    """A tool call that waits or has waited for a person; in full at `/v1/approvals/{id}`."""

    id: Annotated[UUID, Field(description="The approval.")]
    tool_call_id: Annotated[str, Field(description="The call that is to be approved.")]
    status: Annotated[ApprovalStatus, Field(description="What became of it.")]
    requested_at: Annotated[datetime, Field(description="When it was asked for.")]
    expires_at: Annotated[datetime, Field(description="From then on it cannot be decided.")]
    decided_by: Annotated[str | None, Field(description="Who decided.")]
    decided_at: Annotated[datetime | None, Field(description="When they did.")]


class TurnSummary(Answer):
    """From a customer's message to a rest."""

    id: Annotated[UUID, Field(description="The turn.")]
    session_id: Annotated[UUID, Field(description="The session it is of.")]
    status: Annotated[
        TurnStatus,
        Field(description="failed: for good. dead: after too many attempts. waiting: for a person's approval, until `not_before`."),
    ]
    strategy: Annotated[str, Field(description="What happens to messages that arrive while it is open.")]
    opened_at_offset: Annotated[int, Field(description="The offset of the message that opened it.")]
    read_through_offset: Annotated[int | None, Field(description="The last offset it has read; its reply answers messages up to there.")]
    attempts: Annotated[
        int, Field(description="How often a worker has claimed it, since it was last redriven; waits asked for not counted.")
    ]
    redrives: Annotated[int, Field(description="How often it was given another go after it had ended without a reply.")]
    agent_version: Annotated[int | None, Field(description="The agent's version it started with.")]
    error: Annotated[TurnError | None, Field(description="Why it did not answer, or waits.")]
    opened_at: Annotated[datetime, Field(description="When its message was accepted.")]
    started_at: Annotated[datetime | None, Field(description="When a worker first claimed it.")]
    settled_at: Annotated[datetime | None, Field(description="When it ended.")]
    not_before: Annotated[datetime | None, Field(description="No worker takes it before.")]
    cancel_requested_at: Annotated[datetime | None, Field(description="When it was first asked to stop.")]
    cancelled_by: Annotated[str | None, Field(description="Who asked: an API key's name and prefix and its user, or `customer`.")]
    task_id_prefix: Annotated[str, Field(description="Its tasks in Flower have ids that begin with this.")]


class Turns(Paged):
    """A session's turns, the newest first."""

    items: list[TurnSummary]


class Ending(Answer):
    """A worker's claim of the turn that ended badly."""

    claimed_at: Annotated[datetime | None, Field(description="When it began.")]
    error_class: Annotated[str | None, Field(description="WorkerLost: the worker was never heard of again.")]
    detail: Annotated[str | None, Field(description="A sentence for an operator.")]


class Turn(TurnSummary):
    """From a customer's message to a rest, with what it took."""

    agent_digest: Annotated[str | None, Field(description="What the agent and its tools were then, as a digest: the same, the same.")]
    endings: Annotated[list[Ending], Field(description="Its claims that ended badly, the last twenty, the oldest first.")]
    stages_ms: Annotated[Stages, Field(description="Where the time went.")]
    usage: Annotated[TokenCounts, Field(description="The tokens of all its model calls.")]
    cost_usd: Annotated[Money | None, Field(description="US dollars for all calls with a known price; null while there is none.")]
    unpriced_calls: Annotated[int, Field(description="Settled calls that no price is known for.")]
    unknown_calls: Annotated[int, Field(description="Calls that may have been carried out and billed.")]
    model_calls: Annotated[list[ModelCall], Field(description="By step and attempt.")]
    tool_calls: Annotated[list[ToolCall], Field(description="By step and position.")]
    approvals: Annotated[list[TurnApproval], Field(description="What of it waits, or has waited, for a person.")]
