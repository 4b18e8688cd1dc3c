"""Carrying turns."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
from datetime import UTC, datetime
from uuid import UUID

import psycopg
from structlog.contextvars import bound_contextvars

from engine.enums import ModelCallState
from engine.errors import LeaseLost
from engine.events import ModelReply, ToolCall, ToolOutcome, Usage
from engine.model.tokens import bound_tokens, estimated_usage
from engine.turn.cancellation import CancelToken
from engine.turn.commit import CommitResult, Outcome, Park, SettledCall, TurnCommit
from engine.turn.context import Bound, Cost, ModelRequest, TurnContext
from engine.turn.loop import advance
from failpoints import failpoint
from integrations.price_list import cost_of, max_cost_of
from observability import metrics
from store.conversations import turns
from tasks.celery_app import app
from worker.resources import Resources, acquire

log = logging.getLogger(__name__)

CANCELLED_RELEASE_S = 1.0


@app.task(name="turns.advance", queue="turns")
async def advance_turn(turn_id: str) -> None:
    """Carry one turn to its next rest. Harmless to run twice, late, or with an id of nothing."""
    try:
        wanted = UUID(turn_id)
    except (ValueError, AttributeError, TypeError):
        log.warning("a ring for something that is no turn id was dropped")
        return
    async with acquire() as resources:
        with bound_contextvars(turn_id=turn_id):
            failpoint("worker.message_received")
            if await run_turn(resources, wanted) is not None:
                failpoint("worker.before_ack")


async def run_turn(resources: Resources, turn_id: UUID) -> Outcome | None:
    """Claim a turn and carry it to its rest, which is returned; None where it was not claimed or was lost on the way."""
    settings = resources.settings
    with metrics.claiming():
        claim = await turns.claim(
            resources.database,
            turn_id,
            resources.owner(),
            lease_s=settings.turn_lease_s,
            max_attempts=settings.turn_max_attempts,
            window=settings.history_events,
            limits=resources.limits,
            secrets=resources.secrets,
            approval_s=settings.approval_s,
        )
    if isinstance(claim, turns.NotClaimed):  # settled already, or in other hands
        metrics.not_claimed(claim.why)
        if claim.next_turn is not None:
            resources.dispatcher.dispatch(claim.next_turn)
        return None
    metrics.claimed(claim.turn_id, claim.attempts)
    rest: Outcome | None = None
    try:
        async with resources.leases.hold(claim.session_id, claim.fence) as lease:
            rest = await _advance(resources, claim, lease.stop)
    except LeaseLost:
        metrics.lost()
        log.info("the session was taken over by another worker", extra={"session_id": str(claim.session_id), "fence": claim.fence})
    if claim.next_turn is not None:
        resources.dispatcher.dispatch(claim.next_turn)
    return rest


async def _advance(resources: Resources, claim: turns.Claim, stop: CancelToken) -> Outcome | None:
    """Run the turn; whatever ends it early gives the lease back at once instead of letting it run out."""
    turn_log = _NewsLog(resources, claim)
    try:
        return await advance(turn_log, _Performing(resources, claim), claim.context, claim.start, stop)
    except LeaseLost:
        raise
    except asyncio.CancelledError:
        # The worker is going away, or the task's time is up: not the turn's fault, so no attempt is spent.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CANCELLED_RELEASE_S):
                await asyncio.shield(claim.write(_given_up(claim, Park(0.0, refund=True))))
        raise
    except psycopg.Error as error:
        log.warning("the turn's log cannot be written; the lease is left to run out: %s", type(error).__name__)
        return None
    except Exception as error:  # noqa: BLE001 - a bug of ours: it costs the turn an attempt, and shows in its row
        # Frames only: an exception's own words may quote a customer's.
        log.error("a bug stopped a turn", extra={"error_class": type(error).__name__, "frames": traceback.format_tb(error.__traceback__)})  # noqa: TRY400
        rest = Park(2.0**claim.attempts, error_class=type(error).__name__, error_detail=_where(error))
        await turn_log.write(_given_up(claim, rest))
        return rest


def _given_up(claim: turns.Claim, rest: Park) -> TurnCommit:
    """A turn given back in the middle: a model call under way may have been answered, and billed."""
    if claim.outstanding is None:
        return TurnCommit(rest=rest)
    return TurnCommit(model_call=SettledCall(claim.outstanding, ModelCallState.UNKNOWN, error_class="ReplyLost"), rest=rest)


def _where(error: BaseException) -> str:
    """File, line and function of an exception; not its message, which may quote what a customer wrote."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""


class _NewsLog:
    """The claim's log; each commit is told to whoever listens to the session."""

    def __init__(self, resources: Resources, claim: turns.Claim) -> None:
        self._wake, self._claim = resources.publisher, claim

    async def write(self, change: TurnCommit) -> CommitResult:
        claim, began = self._claim, time.perf_counter()
        written = await claim.write(change)
        metrics.committed(claim.turn_id, claim.context.model_provider, change, written, time.perf_counter() - began)
        self._wake.log_advanced(self._claim.session_id, self._claim.last_offset)
        return written


class _Performing:
    """The engine's view of the outside, with streamed tokens told as passing news and replies priced."""

    def __init__(self, resources: Resources, claim: turns.Claim) -> None:
        self._runtime, self._claim = resources, claim

    async def call_model(self, request: ModelRequest, heard: list[str]) -> tuple[ModelReply, Cost]:
        claim, publisher = self._claim, self._runtime.publisher

        def on_result(text: str) -> None:
            heard.append(text)
            publisher.token_delta(claim.session_id, claim.turn_id, claim.attempts, text)

        reply = await self._runtime.performer.call_model(request, on_delta=on_result)
        return reply, cost_of(request.model_provider, reply.model, reply.usage, datetime.now(UTC))

    async def call_tool(self, context: TurnContext, call: ToolCall, idempotency_key: str, *, begun: bool) -> ToolOutcome:
        names = tuple(tool.name for tool in context.tools)
        tool = context.tool(call.tool_name)
        degraded = [one.id for one in tool.integrations if one.degraded] if tool is not None else ()
        on_result = self._runtime.health_recorder.of(self._claim.workspace_id, degraded)
        return await self._runtime.performer.call_tool(tool, call, idempotency_key, tool_names=names, begun=begun, on_result=on_result)

    def bound(self, request: ModelRequest) -> Bound:
        given = bound_tokens(request)
        return Bound(given + request.max_tokens, max_cost_of(request.model_provider, request.model_name, given, request.max_tokens))

    def estimate(self, request: ModelRequest, heard: str) -> tuple[Usage, Cost]:
        usage = estimated_usage(request, heard)
        return usage, cost_of(request.model_provider, request.model_name, usage, datetime.now(UTC))
