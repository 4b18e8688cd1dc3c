"""One message in the pool: from admission to its outcome, told once."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from contextvars import Context
from time import monotonic
from typing import Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, WorkerLostError
from celery.exceptions import SoftTimeLimitExceeded

from worker.greenlet_bridge import GreenletRun

log = logging.getLogger(__name__)

Post = Callable[..., None]

INSIST_EVERY_S = 1.0
STUCK_EXIT_STATUS = 70  # EX_SOFTWARE


class TaskRun:
    """A task's run, on the loop's thread.

    Its outcome is told once, by one posted callback: success, failure, hard limit or termination. After that the run is `settled`,
    whatever its body still does; a settled body is cancelled every second, and one that will not end within `stuck_exit_s` seconds
    ends the process, as nothing else can stop it. 0 means never.
    """

    def __init__(
        self,
        number: int,
        task_id: str | None,
        trace: Callable[[], Any],
        post: Post,
        *,
        accepted: Callable[..., Any] | None,
        succeeded: Callable[..., Any] | None,
        failed: Callable[..., Any] | None,
        timed_out: Callable[..., Any] | None,
        soft_s: float | None,
        hard_s: float | None,
        stuck_exit_s: float,
        stop: Callable[[TaskRun, int | None], None],
    ) -> None:
        self.number = number  # what Celery takes for a process id
        self.task_id = task_id
        self.trace = trace
        self.post = post
        self.accepted = accepted
        self.succeeded = succeeded
        self.failed = failed
        self.timed_out = timed_out
        self.soft_s = soft_s
        self.hard_s = hard_s
        self.stuck_exit_s = stuck_exit_s
        self.settled = False
        self._stop = stop
        self._soft_exceeded = False
        self._settled_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def begun(self) -> bool:
        """Whether the run was admitted."""
        return self._task is not None

    def start(self, loop: asyncio.AbstractEventLoop, context: Context, done: Callable[[TaskRun], None]) -> None:
        """Begin. `done` is called when the body has ended, whenever the outcome was told."""
        self._tell(self.accepted, self.number, monotonic())
        self._task = loop.create_task(self._run(), context=context)
        self._task.add_done_callback(lambda _: done(self))
        if self.soft_s:
            self._timers.append(loop.call_later(self.soft_s, self._exceed_soft))
        if self.hard_s:
            self._timers.append(loop.call_later(self.hard_s, self.give_up, self.timed_out, False, self.hard_s))

    def terminate(self, signal: int | None = None) -> None:
        """Stop this run from any thread: what `Request.terminate` and `Request.cancel` call."""
        self._stop(self, signal)

    def give_up(self, outcome: Callable[..., Any] | None, *args: Any) -> None:
        """Tell `outcome`, unless one has been told, and make the body end. With None, nothing is told: the message stays unacked."""
        if self.settled:
            return
        self.settled, self._settled_at = True, monotonic()
        self._tell(outcome, *args)
        if self._task is not None:
            self._insist(self._task)

    async def _run(self) -> None:
        try:
            result = await GreenletRun(self.trace, self._at_edge)
        except Exception:  # noqa: BLE001  # the tracer's own failure, or a Reject, which Celery lets through
            self._settle(self.failed, ExceptionInfo())
        except BaseException as ended:  # noqa: BLE001  # must not reach the loop: it would stop for SystemExit
            if not self.settled:
                self._settle(self.failed, _raised(WorkerLostError(repr(ended))))
        else:
            self._settle(self.succeeded, result)
        finally:
            for timer in self._timers:
                timer.cancel()

    def _settle(self, outcome: Callable[..., Any] | None, *args: Any) -> None:
        if not self.settled:
            self.settled = True
            self._tell(outcome, *args)

    def _tell(self, callback: Callable[..., Any] | None, *args: Any) -> None:
        if callback is not None:
            self.post(callback, *args)

    def _at_edge(self, ended: BaseException | None) -> BaseException | None:
        """Say what the tracer sees in place of how the body ended."""
        if self.settled:  # too late: the tracer must store no result and start no follow-up
            return ended if isinstance(ended, asyncio.CancelledError) else asyncio.CancelledError()
        if not isinstance(ended, asyncio.CancelledError):
            return None
        if self._soft_exceeded:
            if self._task is not None:
                self._task.uncancel()
            return SoftTimeLimitExceeded(self.soft_s)
        return RuntimeError("the task's body was cancelled from inside")  # an Exception, so that it counts as this task's failure

    def _exceed_soft(self) -> None:
        # As a cancellation, never as an exception thrown in: a TaskGroup only takes its children down for a cancellation.
        if self.settled or self._task is None:
            return
        self._soft_exceeded = True
        self._tell(self.timed_out, True, self.soft_s)
        self._task.cancel()

    def _insist(self, task: asyncio.Task[None]) -> None:
        if task.done():
            return
        stuck_s = monotonic() - self._settled_at
        if 0 < self.stuck_exit_s <= stuck_s:
            log.critical(
                "Task %s was given up %.0f s ago and does not end. Leaving the process, without acknowledging anything.",
                self.task_id,
                stuck_s,
            )
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(STUCK_EXIT_STATUS)
        task.cancel()
        self._timers.append(task.get_loop().call_later(INSIST_EVERY_S, self._insist, task))


def terminated(signal: int | None) -> ExceptionInfo:
    """Return the failure by which Celery knows a run that was revoked or cancelled."""
    return _raised(Terminated(int(signal or 0)))


def _raised(exception: Exception) -> ExceptionInfo:
    try:
        raise exception
    except type(exception):
        return ExceptionInfo()
