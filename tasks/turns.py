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

from engine.errors import LeaseLost
from engine.events import ModelReply, ToolCall, ToolOutcome, Usage
from engine.model.tokens import bound_tokens, estimated_usage
from engine.turn.cancellation import Stop
from engine.turn.commit import CallState, Change, Park, Rest, SettledCall, Written
from engine.turn.context import Bound, Brief, Cost, ModelRequest
from engine.turn.loop import advance
from failpoints import Point, reached
from integrations.price_list import cost_of, max_cost_of
from observability import metrics
from store.conversations import turns
from tasks.celery_app import app
from worker.resources import Runtime, at_hand

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
    async with at_hand() as runtime:
        with bound_contextvars(turn_id=turn_id):
            reached(Point.C5)
            if await carry(runtime, wanted) is not None:
                reached(Point.C15)


async def carry(runtime: Runtime, turn_id: UUID) -> Rest | None:
    """Claim a turn and carry it to its rest, which is returned; None where it was not claimed or was lost on the way."""
    settings = runtime.settings
    with metrics.claiming():
        claim = await turns.claim(
            runtime.database,
            turn_id,
            runtime.owner(),
            lease_s=settings.turn_lease_s,
            max_attempts=settings.turn_max_attempts,
            window=settings.history_events,
            limits=runtime.limits,
            secrets=runtime.secrets,
            approval_s=settings.approval_s,
        )
    if isinstance(claim, turns.NotClaimed):  # settled already, or in other hands
        metrics.not_claimed(claim.why)
        if claim.next_turn is not None:
            runtime.ringer.ring(claim.next_turn)
        return None
    metrics.claimed(claim.turn_id, claim.attempts)
    rest: Rest | None = None
    try:
        async with runtime.leases.hold(claim.session_id, claim.fence) as lease:
            rest = await _advance(runtime, claim, lease.stop)
    except LeaseLost:
        metrics.lost()
        log.info("the session was taken over by another worker", extra={"session_id": str(claim.session_id), "fence": claim.fence})
    if claim.next_turn is not None:
        runtime.ringer.ring(claim.next_turn)
    return rest


async def _advance(runtime: Runtime, claim: turns.Claim, stop: Stop) -> Rest | None:
    """Run the turn; whatever ends it early gives the lease back at once instead of letting it run out."""
    turn_log = _NewsLog(runtime, claim)
    try:
        return await advance(turn_log, _Performing(runtime, claim), claim.brief, claim.start, stop)
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


def _given_up(claim: turns.Claim, rest: Park) -> Change:
    """A turn given back in the middle: a model call under way may have been answered, and billed."""
    if claim.outstanding is None:
        return Change(rest=rest)
    return Change(model_call=SettledCall(claim.outstanding, CallState.UNKNOWN, error_class="ReplyLost"), rest=rest)


def _where(error: BaseException) -> str:
    """File, line and function of an exception; not its message, which may quote what a customer wrote."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""


class _NewsLog:
    """The claim's log; each commit is told to whoever listens to the session."""

    def __init__(self, runtime: Runtime, claim: turns.Claim) -> None:
        self._wake, self._claim = runtime.wake, claim

    async def write(self, change: Change) -> Written:
        claim, began = self._claim, time.perf_counter()
        written = await claim.write(change)
        metrics.committed(claim.turn_id, claim.brief.model_provider, change, written.stop, time.perf_counter() - began)
        self._wake.news(self._claim.session_id, self._claim.last_offset)
        return written


class _Performing:
    """The engine's view of the outside, with streamed tokens told as passing news and replies priced."""

    def __init__(self, runtime: Runtime, claim: turns.Claim) -> None:
        self._runtime, self._claim = runtime, claim

    async def call_model(self, request: ModelRequest, heard: list[str]) -> tuple[ModelReply, Cost]:
        claim, wake = self._claim, self._runtime.wake

        def hear(text: str) -> None:
            heard.append(text)
            wake.delta(claim.session_id, claim.turn_id, claim.attempts, text)

        reply = await self._runtime.performer.call_model(request, on_delta=hear)
        return reply, cost_of(request.model_provider, reply.model, reply.usage, datetime.now(UTC))

    async def call_tool(self, brief: Brief, call: ToolCall, idempotency_key: str, *, begun: bool) -> ToolOutcome:
        names = tuple(tool.name for tool in brief.tools)
        tool = brief.tool(call.tool_name)
        degraded = [one.id for one in tool.integrations if one.degraded] if tool is not None else ()
        hear = self._runtime.hearing.of(self._claim.workspace_id, degraded)
        return await self._runtime.performer.call_tool(tool, call, idempotency_key, tool_names=names, begun=begun, hear=hear)

    def bound(self, request: ModelRequest) -> Bound:
        given = bound_tokens(request)
        return Bound(given + request.max_tokens, max_cost_of(request.model_provider, request.model_name, given, request.max_tokens))

    def estimate(self, request: ModelRequest, heard: str) -> tuple[Usage, Cost]:
        usage = estimated_usage(request, heard)
        return usage, cost_of(request.model_provider, request.model_name, usage, datetime.now(UTC))
