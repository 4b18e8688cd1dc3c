"""One message in the pool, from its start to its outcome, which is reported to Celery once."""

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

from worker.greenlet_bridge import GreenletCall

log = logging.getLogger(__name__)

Post = Callable[..., None]

CANCEL_EVERY_S = 1.0
STUCK_EXIT_STATUS = 70  # EX_SOFTWARE


class TaskRun:
    """A task's run, on the loop's thread.

    Its outcome (success, failure, hard time limit or termination) is reported once, by one posted callback. From then on the run is
    `settled`, whatever its body still does: a body that goes on is cancelled every second, and one that does not end within
    `stuck_exit_s` seconds ends the process, as nothing else can stop it. 0 means never.
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
        self.number = number  # Celery takes it for a process id
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
    def started(self) -> bool:
        """Return True if `start` was called."""
        return self._task is not None

    def start(self, loop: asyncio.AbstractEventLoop, context: Context, done: Callable[[TaskRun], None]) -> None:
        """Start the task. `done` is called when the body has ended, which may be after the outcome was reported."""
        self._report(self.accepted, self.number, monotonic())
        self._task = loop.create_task(self._run(), context=context)
        self._task.add_done_callback(lambda _: done(self))
        if self.soft_s:
            self._timers.append(loop.call_later(self.soft_s, self._exceed_soft_limit))
        if self.hard_s:
            self._timers.append(loop.call_later(self.hard_s, self.abandon, self.timed_out, False, self.hard_s))

    def terminate(self, signal: int | None = None) -> None:
        """Stop this run, from any thread. `Request.terminate` and `Request.cancel` call this."""
        self._stop(self, signal)

    def abandon(self, outcome: Callable[..., Any] | None, *args: Any) -> None:
        """Report `outcome` and cancel the body until it ends; do nothing if an outcome was reported.

        With None, nothing is reported: the message stays unacknowledged.
        """
        if self.settled:
            return
        self.settled, self._settled_at = True, monotonic()
        self._report(outcome, *args)
        if self._task is not None:
            self._keep_cancelling(self._task)

    async def _run(self) -> None:
        try:
            result = await GreenletCall(self.trace, self._replace_end)
        except Exception:  # noqa: BLE001  # the tracer's own failure, or a Reject, which Celery lets through
            self._settle(self.failed, ExceptionInfo())
        except BaseException as ended:  # noqa: BLE001  # must not reach the loop: it would stop for SystemExit
            if not self.settled:
                self._settle(self.failed, _exception_info(WorkerLostError(repr(ended))))
        else:
            self._settle(self.succeeded, result)
        finally:
            for timer in self._timers:
                timer.cancel()

    def _settle(self, outcome: Callable[..., Any] | None, *args: Any) -> None:
        if not self.settled:
            self.settled = True
            self._report(outcome, *args)

    def _report(self, callback: Callable[..., Any] | None, *args: Any) -> None:
        if callback is not None:
            self.post(callback, *args)

    def _replace_end(self, ended: BaseException | None) -> BaseException | None:
        """Return the exception that the tracer sees in place of the body's result; None to leave the result."""
        if self.settled:  # too late: the tracer must store no result and start no follow-up task
            return ended if isinstance(ended, asyncio.CancelledError) else asyncio.CancelledError()
        if not isinstance(ended, asyncio.CancelledError):
            return None
        if self._soft_exceeded:
            if self._task is not None:
                self._task.uncancel()
            return SoftTimeLimitExceeded(self.soft_s)
        return RuntimeError("the task's body was cancelled from inside")  # an Exception, so that it counts as this task's failure

    def _exceed_soft_limit(self) -> None:
        # By cancellation, not by throwing an exception in: a TaskGroup cancels its children only on a cancellation.
        if self.settled or self._task is None:
            return
        self._soft_exceeded = True
        self._report(self.timed_out, True, self.soft_s)
        self._task.cancel()

    def _keep_cancelling(self, task: asyncio.Task[None]) -> None:
        if task.done():
            return
        stuck_s = monotonic() - self._settled_at
        if 0 < self.stuck_exit_s <= stuck_s:
            log.critical(
                "Task %s was cancelled %.0f s ago and does not end; exiting without acknowledging any message",
                self.task_id,
                stuck_s,
            )
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(STUCK_EXIT_STATUS)
        task.cancel()
        self._timers.append(task.get_loop().call_later(CANCEL_EVERY_S, self._keep_cancelling, task))


def terminated(signal: int | None) -> ExceptionInfo:
    """Return the failure that Celery expects of a revoked or cancelled run."""
    return _exception_info(Terminated(int(signal or 0)))


def _exception_info(exception: Exception) -> ExceptionInfo:
    try:
        raise exception
    except type(exception):
        return ExceptionInfo()
