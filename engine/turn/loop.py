"""Read, fold, decide, perform, append: one turn, from its claim to its rest."""

from __future__ import annotations

from engine.turn.cancellation import CancelToken
from engine.turn.commit import Outcome
from engine.turn.context import TurnContext
from engine.turn.ports import Perform, ResumePoint, TurnLog
from engine.turn.runner import TurnRunner


async def advance(
    log: TurnLog,
    perform: Perform,
    context: TurnContext,
    start: ResumePoint,
    stop: CancelToken | None = None,
    *,
    slice_s: float = 120.0,
    patience_s: float = 3600.0,
) -> Outcome:
    """Drive one turn until it finishes or parks, and return which.

    Each pass is durable: what `perform` learned is committed together with the intent of the next step, so a dead worker's turn
    resumes from the log and repeats nothing that had finished. Customer messages that arrive meanwhile are read by the next model call.
    After `slice_s` the turn is parked for no time at all, so that a long one never outlives the limits on a task; a turn that the
    provider has kept waiting for more than `patience_s` since it was first claimed fails. When `stop` is asked for, calls in flight
    are cut off, and the turn ends with what was learned so far.

    Raises:
        LeaseLost: another worker holds the turn now; nothing more of it was written here.
    """
    return await TurnRunner(log, perform, context, start, stop or CancelToken(), slice_s, patience_s).run()
