"""Claims a turn, runs it and gives its lease back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from uuid import UUID

import psycopg

from engine.enums import ModelCallState
from engine.errors import LeaseLost
from engine.turn.cancellation import CancelToken
from engine.turn.commit import CommitResult, Outcome, Park, SettledCall, TurnCommit
from engine.turn.runner import TurnRunner
from observability import metrics
from store.conversations import turns
from worker.resources import Resources

log = logging.getLogger(__name__)

RELEASE_TIMEOUT_S = 1.0


async def run_turn(resources: Resources, turn_id: UUID) -> Outcome | None:
    """Claim a turn and run it to its next outcome, which is returned; None if it was not claimed or its lease was lost."""
    with metrics.claiming():
        claim = await _claim(resources, turn_id)
    if isinstance(claim, turns.NotClaimed):  # settled already, or claimed by another worker
        metrics.not_claimed(claim.why)
        if claim.next_turn is not None:
            resources.dispatcher.dispatch(claim.next_turn)
        return None
    metrics.claimed(claim.turn_id, claim.attempts)
    outcome: Outcome | None = None
    try:
        async with resources.leases.keep(claim.session_id, claim.fence) as lease:
            outcome = await _run_claimed(resources, claim, lease.cancel)
    except LeaseLost:
        metrics.lost()
        log.info("The session was taken over by another worker", extra={"session_id": str(claim.session_id), "fence": claim.fence})
    if claim.next_turn is not None:
        resources.dispatcher.dispatch(claim.next_turn)
    return outcome


async def _claim(resources: Resources, turn_id: UUID) -> turns.Claim | turns.NotClaimed:
    settings = resources.settings
    return await turns.claim(
        resources.database,
        turn_id,
        resources.owner(),
        lease_s=settings.turn_lease_s,
        max_attempts=settings.turn_max_attempts,
        history_limit=settings.history_events,
        limits=resources.limits,
        secrets=resources.secrets,
        approval_s=settings.approval_s,
    )


async def _run_claimed(resources: Resources, claim: turns.Claim, cancel: CancelToken) -> Outcome | None:
    """Run the turn. Whatever ends it early gives the lease back at once, instead of letting it run out."""
    publisher = resources.publisher

    def on_delta(text: str) -> None:
        publisher.token_delta(claim.session_id, claim.turn_id, claim.attempts, text)

    def on_commit(commit: TurnCommit, result: CommitResult, seconds: float) -> None:
        metrics.committed(claim.turn_id, claim.context.model_provider, commit, result, seconds)
        publisher.log_advanced(claim.session_id, claim.last_offset)

    claim.on_commit = on_commit
    runner = TurnRunner(claim, resources.performer, claim.context, claim.resume_point, cancel, on_delta=on_delta)
    try:
        return await runner.run()
    except LeaseLost:
        raise
    except asyncio.CancelledError:
        # The worker shuts down, or the task's time limit is reached. That is not the turn's fault, so it costs no attempt.
        claim.on_commit = None
        with contextlib.suppress(Exception):
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await asyncio.shield(claim.write(_released(claim, Park(0.0, refund=True))))
        raise
    except psycopg.Error as error:
        log.warning("Cannot write the turn; its lease will run out: %s", type(error).__name__)
        return None
    except Exception as error:  # noqa: BLE001 - a bug of ours: it costs the turn an attempt, and its row shows it
        # Only the frames are logged: an exception's message may quote a customer.
        log.error("A bug stopped a turn", extra={"error_class": type(error).__name__, "frames": traceback.format_tb(error.__traceback__)})  # noqa: TRY400
        park = Park(2.0**claim.attempts, error_class=type(error).__name__, error_detail=_location(error))
        result = await claim.write(_released(claim, park))
        return result.outcome


def _released(claim: turns.Claim, park: Park) -> TurnCommit:
    """Return the commit that gives a turn back in the middle. A model call under way may have been answered, and billed."""
    if claim.outstanding is None:
        return TurnCommit(outcome=park)
    return TurnCommit(model_call=SettledCall(claim.outstanding, ModelCallState.UNKNOWN, error_class="ReplyLost"), outcome=park)


def _location(error: BaseException) -> str:
    """Return file, line and function of an exception. Its message is left out: it may quote a customer."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
