"""Read, fold, decide, perform, append: one turn, from its claim to its rest."""

from __future__ import annotations

from engine.turn.cancellation import Stop
from engine.turn.commit import Rest
from engine.turn.context import Brief
from engine.turn.ports import Perform, Start, TurnLog
from engine.turn.runner import Course


async def advance(
    log: TurnLog,
    perform: Perform,
    brief: Brief,
    start: Start,
    stop: Stop | None = None,
    *,
    slice_s: float = 120.0,
    patience_s: float = 3600.0,
) -> Rest:
    """Drive one turn until it finishes or parks, and return which.

    Each pass is durable: what `perform` learned is committed together with the intent of the next step, so a dead worker's turn
    resumes from the log and repeats nothing that had finished. Customer messages that arrive meanwhile are read by the next model call.
    After `slice_s` the turn is parked for no time at all, so that a long one never outlives the limits on a task; a turn that the
    provider has kept waiting for more than `patience_s` since it was first claimed fails. When `stop` is asked for, calls in flight
    are cut off, and the turn ends with what was learned so far.

    Raises:
        LeaseLost: another worker holds the turn now; nothing more of it was written here.
    """
    return await Course(log, perform, brief, start, stop or Stop(), slice_s, patience_s).run()
