"""Turns, with what they took and cost."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, StrictBool

from api.schemas.common import Money, Paged, RequestBody, ResponseBody
from api.schemas.messages import TurnReference
from engine.enums import ApprovalStatus, ModelCallState, Strategy, ToolCallState, TurnStatus

MsOrNull = int | None


class Redrive(RequestBody):
    """How to redrive a turn."""

    from_scratch: Annotated[
        StrictBool,
        Field(
            description="Start again from the turn's messages, with the agent's current version; the model does not see what the turn had "
            "done. Refused if a tool has run that must not be repeated."
        ),
    ] = False


class Redriven(ResponseBody):
    """The turn is open again."""

    turn: TurnReference


class Cancelled(ResponseBody):
    """The result of a request to cancel."""

    status: Annotated[
        Literal["cancelled", "cancelling", "settled"],
        Field(
            description="cancelled: all open turns have ended. cancelling: a worker is running a turn and will end it within a second. "
            "settled: no turn was open."
        ),
    ]
    session_id: UUID
    turn_id: Annotated[UUID | None, Field(description="Null if the whole session was cancelled.")]


class TurnError(ResponseBody):
    """Why a turn did not answer, or is waiting."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    class_: Annotated[str, Field(alias="class", description="The class of the failure.", examples=["RateLimited", "BudgetSpent"])]
    detail: Annotated[str | None, Field(description="A sentence for operators, without secrets or text of the conversation.")]


class Stages(ResponseBody):
    """Milliseconds by stage; null if the turn has not reached it."""

    queued: Annotated[MsOrNull, Field(description="From the message to the first claim by a worker.")]
    model: Annotated[MsOrNull, Field(description="Waiting for the model provider, all calls added up.")]
    tool: Annotated[MsOrNull, Field(description="Waiting for tools: the slowest call of each step, added up.")]
    commit: Annotated[MsOrNull, Field(description="The rest of the time since the first claim: the database, and waits between attempts.")]
    total: Annotated[MsOrNull, Field(description="From the message to the turn's end.")]


class TokenCounts(ResponseBody):
    """Tokens by kind."""

    input_tokens: Annotated[int, Field(description="All tokens read.")]
    cached_input_tokens: Annotated[int, Field(description="The part of the input read from the provider's cache.")]
    cache_write_tokens: Annotated[int, Field(description="The part of the input written to the provider's cache.")]
    output_tokens: Annotated[int, Field(description="All tokens generated.")]
    reasoning_tokens: Annotated[int, Field(description="The part of the output that is reasoning and not the reply.")]


class ModelCall(TokenCounts):
    """One request to a model provider."""

    step: Annotated[int, Field(description="The step of the turn that made the call, from 0.")]
    attempt: Annotated[int, Field(description="The attempt at that step, from 0.")]
    provider: Annotated[str, Field(description="The model vendor.")]
    model: Annotated[str, Field(description="The requested model.")]
    state: Annotated[
        ModelCallState,
        Field(description="reserved: in flight. settled: its usage is known. failed: not executed. unknown: maybe executed, and billed."),
    ]
    cost_usd: Annotated[Money | None, Field(description="US dollars; null in a settled call if no price is known.")]
    estimated: Annotated[bool, Field(description="The call was cut off; its tokens are estimated from the text sent and received.")]
    price_source: Annotated[str | None, Field(description="The price list that the cost was computed from.")]
    ttft_ms: Annotated[MsOrNull, Field(description="Milliseconds to the first token.")]
    latency_ms: Annotated[MsOrNull, Field(description="Milliseconds to the end of the response.")]
    provider_request_id: Annotated[str | None, Field(description="The vendor's id of the request, for their support.")]
    error_class: Annotated[str | None, Field(description="The class of the failure, if it failed.")]
    created_at: Annotated[datetime, Field(description="When its cost was reserved, before the request.")]
    settled_at: Annotated[datetime | None, Field(description="When its outcome was recorded.")]


class ToolCall(ResponseBody):
    """One use of a tool. Its arguments and result are in the session's log."""

    tool_call_id: Annotated[str, Field(description="The id in the log's tool_call and tool_result events.")]
    tool_name: Annotated[str, Field(description="The name that the model used.")]
    step: Annotated[int, Field(description="The step of the turn that requested it, from 0.")]
    position: Annotated[int, Field(description="Its position among the calls of that step, which run concurrently.")]
    state: Annotated[ToolCallState, Field(description="unknown: it may or may not have happened.")]
    attempts: Annotated[int, Field(description="The number of requests sent.")]
    latency_ms: Annotated[MsOrNull, Field(description="Its duration in milliseconds.")]
    error: Annotated[str | None, Field(description="Why it failed, as told to the model.")]
    tool_id: Annotated[UUID | None, Field(description="Null if the agent has no such tool.")]
    integration_id: Annotated[UUID | None, Field(description="The integration that was used.")]
    created_at: Annotated[datetime, Field(description="When it was requested.")]
    settled_at: Annotated[datetime | None, Field(description="When its outcome was recorded.")]


class TurnApproval(ResponseBody):
    """An approval of one of the turn's tool calls; complete at `/v1/approvals/{id}`."""

    id: Annotated[UUID, Field(description="The approval.")]
    tool_call_id: Annotated[str, Field(description="The tool call to be approved.")]
    status: Annotated[ApprovalStatus, Field(description="The state of the approval.")]
    requested_at: Annotated[datetime, Field(description="When it was requested.")]
    expires_at: Annotated[datetime, Field(description="From then on it cannot be decided.")]
    decided_by: Annotated[str | None, Field(description="The deciding API key and its user.")]
    decided_at: Annotated[datetime | None, Field(description="When it was decided.")]


class TurnSummary(ResponseBody):
    """A turn: the work from a customer's message to its outcome."""

    id: Annotated[UUID, Field(description="The turn.")]
    session_id: Annotated[UUID, Field(description="Its session.")]
    status: Annotated[
        TurnStatus,
        Field(description="failed: for good. dead: after too many attempts. waiting: until an approval is decided, or until `not_before`."),
    ]
    strategy: Annotated[Strategy, Field(description="What happens to messages that arrive while the turn is open.")]
    opened_at_offset: Annotated[int, Field(description="The offset of the message that opened it.")]
    read_through_offset: Annotated[int | None, Field(description="The last offset it has read; its reply answers messages up to there.")]
    attempts: Annotated[
        int, Field(description="How often workers have claimed it since it was opened or last redriven, without requested waits.")
    ]
    redrives: Annotated[int, Field(description="How often it was redriven after it had ended without a reply.")]
    agent_version: Annotated[int | None, Field(description="The version of the agent that it started with.")]
    error: Annotated[TurnError | None, Field(description="Why it did not answer, or is waiting.")]
    opened_at: Annotated[datetime, Field(description="When its message was accepted.")]
    started_at: Annotated[datetime | None, Field(description="When a worker first claimed it.")]
    settled_at: Annotated[datetime | None, Field(description="When it ended.")]
    not_before: Annotated[datetime | None, Field(description="Workers do not claim it earlier.")]
    cancel_requested_at: Annotated[datetime | None, Field(description="When its cancellation was first requested.")]
    cancelled_by: Annotated[str | None, Field(description="An API key's name and prefix and its user, or `customer`.")]
    task_id_prefix: Annotated[str, Field(description="The ids of its tasks in Flower start with this.")]


class Turns(Paged):
    """A session's turns, newest first."""

    items: list[TurnSummary]


class FailedClaim(ResponseBody):
    """A worker's claim of the turn that ended in a failure."""

    claimed_at: Annotated[datetime | None, Field(description="When the claim started.")]
    error_class: Annotated[str | None, Field(description="The class of the failure. WorkerLost: the worker never reported back.")]
    detail: Annotated[str | None, Field(description="A sentence for operators.")]


class Turn(TurnSummary):
    """A turn with its model calls, tool calls, durations and cost."""

    agent_digest: Annotated[
        str | None, Field(description="A digest of the agent and its tools at the start; equal digests mean equal configurations.")
    ]
    endings: Annotated[list[FailedClaim], Field(description="The last twenty claims that failed, oldest first.")]
    stages_ms: Annotated[Stages, Field(description="Durations by stage.")]
    usage: Annotated[TokenCounts, Field(description="The tokens of all its model calls.")]
    cost_usd: Annotated[Money | None, Field(description="US dollars for all calls with a known price; null while there is none.")]
    unpriced_calls: Annotated[int, Field(description="Settled calls without a known price.")]
    unknown_calls: Annotated[int, Field(description="Calls that may have been executed and billed.")]
    model_calls: Annotated[list[ModelCall], Field(description="By step and attempt.")]
    tool_calls: Annotated[list[ToolCall], Field(description="By step and position.")]
    approvals: Annotated[list[TurnApproval], Field(description="Approvals of its tool calls.")]
