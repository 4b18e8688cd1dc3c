"""Dispatching: publishing `turns.advance` for a turn, so that a worker runs it.

A dispatch may be lost, doubled or late without harm: the turn's row is the truth, and the sweep dispatches unclaimed turns again.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg
from celery import Celery

from failpoints import failpoint
from store.database import APP_ROLE, connect_arguments

log = logging.getLogger(__name__)

BATCH = 100
MAX_QUEUED = 20_000  # turns queued while the broker does not answer; the sweep dispatches the others


def task_id(turn_id: UUID, dispatch: int) -> str:
    """Return the id of the task for a turn's `dispatch`-th dispatch. It leads from a row in Flower to the turn."""
    return f"turn:{turn_id}:{dispatch}"


def publish(app: Celery, dispatches: Sequence[tuple[UUID, int]]) -> None:
    """Publish `turns.advance` for each (turn, number of the dispatch), many messages per round trip if the broker can.

    Raises what kombu raises.
    """
    with app.producer_pool.acquire(block=True, timeout=5) as producer, producer.batch(max_size=BATCH):
        for turn_id, dispatch in dispatches:
            app.send_task(
                "turns.advance",
                args=(str(turn_id),),
                task_id=task_id(turn_id, dispatch),
                queue="turns",
                producer=producer,
                ignore_result=True,
                kwargsrepr="{}",
                retry=False,
            )


class Dispatcher:
    """Publishes from a thread of its own, so that a slow broker delays neither a request nor a turn.

    `dispatch` returns at once; turns that arrive while one batch is sent go out as the next. Dispatched turns are marked in the
    database through `database_url` (acting as turnline_app), so that the sweep leaves them alone.
    """

    def __init__(self, app: Celery, database_url: str) -> None:
        self._app = app
        self._database_url = database_url
        self._queue: queue.Queue[UUID | None] = queue.Queue(maxsize=MAX_QUEUED)
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._database: psycopg.Connection[Any] | None = None
        self._failing = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def dispatch(self, turn_id: UUID) -> None:
        """Dispatch `turn_id` soon. Never blocks and never raises; if the queue is full, the sweep dispatches the turn."""
        try:
            self._queue.put_nowait(turn_id)
        except queue.Full:
            self._warn_once("Dispatch queue is full; the sweep will dispatch the other turns")

    def close(self, timeout_s: float = 5.0) -> None:
        """Publish what is queued, and stop."""
        if self._thread.is_alive():
            try:
                self._queue.put(None, timeout=timeout_s)
            except queue.Full:
                return
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                break
            batch, ended = [first], False
            while len(batch) < BATCH and not ended:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    ended = True
                else:
                    batch.append(following)
            self._send(batch)
            if ended:
                break
        if self._database is not None:
            self._database.close()

    def _send(self, turn_ids: list[UUID]) -> None:
        try:
            publish(self._app, [(turn_id, 0) for turn_id in turn_ids])
            failpoint("dispatch.published")
        except Exception as error:  # noqa: BLE001 - whatever the broker does, the turns are safe and the thread continues
            self._warn_once(f"Dispatch failed ({type(error).__name__}); the sweep will dispatch the turns")
            return
        if self._failing:
            self._failing = False
            log.info("Dispatching works again")
        try:
            if self._database is None or self._database.closed:
                self._database = psycopg.connect(self._database_url, autocommit=True, **connect_arguments(APP_ROLE, "turnline-dispatcher"))
            self._database.execute("SELECT mark_dispatched(%s)", (turn_ids,))
        except psycopg.Error as error:
            log.warning("Turns could not be marked as dispatched (%s); some will be dispatched twice", type(error).__name__)

    def _warn_once(self, message: str) -> None:
        """Log a warning, but only the first one until dispatching works again."""
        if not self._failing:
            self._failing = True
            log.warning(message)
