"""Several lanes at the same time, which share a Postgres and a sandbox, and take one case after the other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from tests.crashpoints.case import Case, Outcome
from tests.crashpoints.crashes import Crash
from tests.crashpoints.lane import Lane
from tests.crashpoints.nursery import Nursery
from tests.pipeline.stack import Stack, running
from tests.servers import Databases

Cases = Sequence[tuple[Crash, ...]]


@contextmanager
def under_way(databases: Databases, directory: Path, cases: Cases, lanes: int) -> Iterator[list[Future[Outcome]]]:
    """The outcomes of `cases`, in their order, as they come. Cases not begun are dropped on leaving."""
    (directory / "sandbox").mkdir()
    sandbox = Stack("", "", directory / "sandbox")
    waiting: queue.SimpleQueue[tuple[tuple[Crash, ...], Future[Outcome]]] = queue.SimpleQueue()
    futures: list[Future[Outcome]] = []
    for crashes in cases:
        futures.append(Future())
        waiting.put((crashes, futures[-1]))
    with running(sandbox), Nursery() as nursery:
        urls = [databases.migrated() for _ in range(min(lanes, len(cases)))]
        threads = [
            threading.Thread(target=_run, args=(Lane(url, sandbox.sandbox_url, directory / f"lane-{number}", nursery), waiting))
            for number, url in enumerate(urls)
        ]
        for thread in threads:
            thread.start()
        try:
            yield futures
        finally:
            for future in futures:
                future.cancel()
            for thread in threads:
                thread.join()
            for url in urls:
                databases.drop(url)


def _run(lane: Lane, waiting: queue.SimpleQueue[tuple[tuple[Crash, ...], Future[Outcome]]]) -> None:
    """Take cases until there are none; a lane that cannot start fails those it takes."""
    try:
        with lane:
            _take(lane, waiting)
    except BaseException as error:
        while not waiting.empty():
            _, future = waiting.get()
            if future.set_running_or_notify_cancel():
                future.set_exception(error)


def _take(lane: Lane, waiting: queue.SimpleQueue[tuple[tuple[Crash, ...], Future[Outcome]]]) -> None:
    while True:
        try:
            crashes, future = waiting.get_nowait()
        except queue.Empty:
            return
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(Case(lane, crashes).run())
        except BaseException as error:
            future.set_exception(error)
