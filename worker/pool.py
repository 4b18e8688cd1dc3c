"""The worker pool: tasks as coroutines, through Celery's hook for custom pools.

    CELERY_CUSTOM_WORKER_POOL=worker.pool:TaskPool celery -A tasks worker --pool custom -c 1000

Two threads. Celery's consumer keeps the main one: broker, remote control, timers. The other runs one asyncio loop; there every task
is an asyncio task around a greenlet, in which Celery's own tracer runs and drives the `async def` body (`worker.greenlet_bridge`).
Celery's callbacks (accepted, succeeded, failed …) are posted back in order and called on the consumer's thread (`worker.mailbox`).

Differences from the prefork pool: a soft time limit reaches the body as `asyncio.CancelledError` and the tracer as
`SoftTimeLimitExceeded`; a plain `def` body blocks the loop and has no time limits; `worker_pid` is a run's number; there are no
children to recycle. `TURNLINE_POOL_STUCK_EXIT_S` is how long a body may ignore its hard limit or termination before the process exits,
without acknowledging anything, so that the broker delivers the messages again.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, cast

from celery.concurrency.base import BasePool
from celery.worker import state
from kombu.asynchronous import Hub

from settings import get_settings
from worker import lifespan
from worker.event_loop import LoopThread
from worker.mailbox import Mailbox
from worker.task_run import TaskRun, terminated

log = logging.getLogger(__name__)

MAX_STARTS_PER_CYCLE = 50  # per cycle of the loop, so that many messages at once do not hold up the running tasks
COLD_STOP_S = 5.0  # time for cancelled bodies to end in a cold shutdown


class TaskPool(BasePool):
    """Runs up to `limit` tasks at a time as coroutines of one loop."""

    limit: int
    signal_safe = False
    is_green = False  # a green pool would lose Celery's event loop
    uses_semaphore = False
    body_can_be_buffer = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limit = int(self.limit or 0)
        self.stuck_exit_s = get_settings().pool_stuck_exit_s
        self._mailbox = Mailbox()
        self._runs: dict[int, TaskRun] = {}  # every run that has not ended; Celery only has weak references
        self._queued: deque[TaskRun] = deque()
        self._running = 0  # changed on the loop's thread only
        self._starting = False
        self._numbers = itertools.count(1)
        self._thread: LoopThread | None = None
        self._context = contextvars.Context()
        self._closing = False

    # Start and stop; on the consumer's thread

    def on_start(self) -> None:
        """Start the loop and run the start hooks. Raises what a hook raises."""
        self._context = contextvars.copy_context()
        self._thread = thread = LoopThread(self.app.set_current)
        thread.start()
        try:
            thread.run(lifespan.run_start_hooks()).result()
        except BaseException:
            self._closing = True
            thread.stop(COLD_STOP_S)
            raise

    def register_with_event_loop(self, loop: Hub) -> None:
        """Deliver callbacks on Celery's hub. Called again after each reconnect."""
        self._mailbox.attach(loop)

    def flush(self) -> None:
        """Drop the messages that were received and not started. Celery calls this when it closes its connection: they are redelivered."""
        while self._queued:
            self._runs.pop(self._queued.popleft().number, None)

    def on_stop(self) -> None:
        """Wait until every run has ended and is acknowledged, then close. In a cold shutdown, cancel the remaining runs first.

        Runs in place of the hub, also inside a signal handler and, when a cold shutdown follows during a warm one, inside itself.
        """
        abandoned_at: float | None = None
        while self._runs and not self._closing:
            if abandoned_at is None and _cold():
                abandoned_at = monotonic()
                self._on_loop(self._abandon_all)
            if abandoned_at is not None and monotonic() - abandoned_at > COLD_STOP_S:
                log.warning("%d cancelled tasks have not ended after %g s; their messages go back", len(self._runs), COLD_STOP_S)
                break
            self._mailbox.drain(0.2)
        self._close()

    def on_terminate(self) -> None:
        """Cancel every run without reporting an outcome, and close: unacknowledged messages go back to the broker."""
        if self._closing:
            return
        self._on_loop(self._abandon_all)
        until = monotonic() + COLD_STOP_S
        while self._runs and monotonic() < until:
            self._mailbox.drain(0.1)
        self._close()

    def _close(self) -> None:
        if self._closing or self._thread is None:
            return
        self._closing = True
        stopped = self._thread.run(lifespan.run_stop_hooks())
        while not stopped.done() and self._thread.lag_s()[0] < COLD_STOP_S:
            self._mailbox.drain(0.1)
        self._thread.stop(COLD_STOP_S)
        self._mailbox.drain(0.0)
        self._mailbox.close()

    # Runs; on the consumer's thread

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        error_callback: Callable[..., Any] | None = None,
        timeout_callback: Callable[..., Any] | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        correlation_id: str | None = None,
        **_: Any,
    ) -> TaskRun:
        """Queue one message to be run, and return at once. A pool that is closing ignores it, and it stays unacknowledged."""
        run = TaskRun(
            next(self._numbers),
            correlation_id,
            functools.partial(target, *args, **(kwargs or {})),
            self._mailbox.post,
            accepted=accept_callback,
            succeeded=callback,
            failed=error_callback,
            timed_out=timeout_callback,
            soft_s=soft_timeout or self.options.get("soft_timeout"),
            hard_s=timeout or self.options.get("timeout"),
            stuck_exit_s=self.stuck_exit_s,
            stop=self._stop_run,
        )
        if self._state in (None, self.RUN):
            self._runs[run.number] = run
            self._queued.append(run)
            self._start_soon()
        return run

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Cancel the run whose number Celery has as its process id. Does nothing if it has ended."""
        run = self._runs.get(pid)
        if run is not None:
            self._stop_run(run, signal)

    def grow(self, n: int = 1) -> None:
        """Run up to `n` more tasks at a time."""
        self.limit += n
        self._start_soon()

    def shrink(self, n: int = 1) -> None:
        """Run up to `n` fewer tasks at a time. Running tasks continue."""
        self.limit = max(0, self.limit - n)

    @property
    def num_processes(self) -> int:
        """The limit, from which Celery computes prefetch and autoscaling."""
        return self.limit

    @property
    def loop_lag_s(self) -> float:
        """The lag of the tasks' loop, in seconds. May be read from any thread."""
        return self._thread.lag_s()[0] if self._thread else 0.0

    def _get_info(self) -> dict[str, Any]:
        lag_s, worst_lag_s = self._thread.lag_s() if self._thread else (0.0, 0.0)
        return {
            **super()._get_info(),
            "processes": [os.getpid()],
            "running": self._running,
            "queued": len(self._queued),
            "given-up": sum(run.settled for run in list(self._runs.values())),
            "loop-lag-ms": round(lag_s * 1000, 1),
            "loop-lag-ms-worst-30s": round(worst_lag_s * 1000, 1),
            "timeouts": [self.options.get("soft_timeout") or 0, self.options.get("timeout") or 0],
            "stuck-exit-s": self.stuck_exit_s,
        }

    def _on_loop(self, callback: Callable[..., Any], *args: Any) -> None:
        if self._thread is not None and not self._thread.loop.is_closed():
            self._thread.loop.call_soon_threadsafe(callback, *args)

    def _start_soon(self) -> None:
        if not self._starting:
            self._starting = True
            self._on_loop(self._start_queued)

    def _stop_run(self, run: TaskRun, signal: int | None) -> None:
        self._on_loop(self._terminate, run, signal)

    # Runs; on the loop's thread

    def _start_queued(self) -> None:
        self._starting = False
        loop = asyncio.get_running_loop()
        for _ in range(min(MAX_STARTS_PER_CYCLE, self.limit - self._running)):
            try:
                run = self._queued.popleft()
            except IndexError:
                return
            if run.settled:  # terminated before it was started
                continue
            self._running += 1
            run.start(loop, self._context.copy(), self._ended)
        if self._queued and self._running < self.limit:
            self._start_soon()

    def _ended(self, run: TaskRun) -> None:
        self._running -= 1
        self._runs.pop(run.number, None)
        if self._queued:
            self._start_soon()

    def _terminate(self, run: TaskRun, signal: int | None) -> None:
        if run.number not in self._runs:
            return
        if not run.started:
            self._runs.pop(run.number, None)
        # The failure callback: the success callback would acknowledge unfinished work.
        run.abandon(run.failed, terminated(signal))

    def _abandon_all(self) -> None:
        self.flush()
        for run in list(self._runs.values()):
            run.abandon(None)


def _cold() -> bool:
    status = cast(object, state.should_terminate)  # None and False: no; an exit status, also 0: yes
    return status is not None and status is not False
