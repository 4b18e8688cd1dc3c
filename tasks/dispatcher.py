"""Ringing the doorbell: telling workers, through the broker, that a turn wants carrying.

A ring may be lost, doubled or late without harm: the turn's row is the truth, and the sweep rings what nobody carries.
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
BOUND = 20_000  # rings waiting for a broker that does not answer; beyond it they are left to the sweep


def task_id(turn_id: UUID, dispatch: int) -> str:
    """The id of the task of a turn's `dispatch`-th ring: what leads from a row in Flower to the turn."""
    return f"turn:{turn_id}:{dispatch}"


def publish(app: Celery, rings: Sequence[tuple[UUID, int]]) -> None:
    """Ring each (turn, number of the ring), many messages a round trip where the broker can. Raises what kombu raises."""
    with app.producer_pool.acquire(block=True, timeout=5) as producer, producer.batch(max_size=BATCH):
        for turn_id, dispatch in rings:
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
    """Rings from a thread of its own, so that a slow broker holds up neither a request nor a turn.

    `dispatch` returns at once; what gathers while one batch is on its way goes out as the next. Published rings are marked on their turns,
    through `database_url` (acting as turnline_app), so that the sweep leaves them alone.
    """

    def __init__(self, app: Celery, database_url: str) -> None:
        self._app = app
        self._database_url = database_url
        self._waiting: queue.Queue[UUID | None] = queue.Queue(maxsize=BOUND)
        self._thread = threading.Thread(target=self._run, name="ringer", daemon=True)
        self._database: psycopg.Connection[Any] | None = None
        self._silent = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def dispatch(self, turn_id: UUID) -> None:
        """Ring for `turn_id`, soon. Never blocks and never raises; a ring that does not fit is left to the sweep."""
        try:
            self._waiting.put_nowait(turn_id)
        except queue.Full:
            self._complain("too many rings wait for the broker; the sweep will ring the rest")

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is waiting and stop."""
        if self._thread.is_alive():
            try:
                self._waiting.put(None, timeout=timeout_s)
            except queue.Full:
                return
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            first = self._waiting.get()
            if first is None:
                break
            batch, ended = [first], False
            while len(batch) < BATCH and not ended:
                try:
                    following = self._waiting.get_nowait()
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
        except Exception as error:  # noqa: BLE001 - whatever the broker does, the turns are safe and the thread goes on
            self._complain(f"the broker took no rings ({type(error).__name__}); the sweep will ring again")
            return
        if self._silent:
            self._silent = False
            log.info("the broker takes rings again")
        try:
            if self._database is None or self._database.closed:
                self._database = psycopg.connect(self._database_url, autocommit=True, **connect_arguments(APP_ROLE, "turnline-ringer"))
            self._database.execute("SELECT mark_dispatched(%s)", (turn_ids,))
        except psycopg.Error as error:
            log.warning("rung turns could not be marked (%s); some will be rung twice", type(error).__name__)

    def _complain(self, sentence: str) -> None:
        if not self._silent:
            self._silent = True
            log.warning(sentence)
