"""Several runners at the same time, which share a Postgres and a sandbox, and take one case after the other."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers import Databases
from tests.support.stack import Stack, running
from tests.system.crashes.case import Case, Outcome
from tests.system.crashes.crash_table import Crash
from tests.system.crashes.runner import Runner

Cases = Sequence[tuple[Crash, ...]]
Waiting = queue.SimpleQueue[tuple[tuple[Crash, ...], Future[Outcome]]]


@contextmanager
def run_cases(databases: Databases, directory: Path, cases: Cases, runners: int) -> Iterator[list[Future[Outcome]]]:
    """The outcomes of `cases`, in their order, as they come. Cases not begun are dropped on leaving."""
    (directory / "sandbox").mkdir()
    sandbox = Stack("", "", directory / "sandbox")
    waiting: Waiting = queue.SimpleQueue()
    futures: list[Future[Outcome]] = []
    for crashes in cases:
        futures.append(Future())
        waiting.put((crashes, futures[-1]))
    with running(sandbox):
        numbers = itertools.count()
        making = threading.Lock()

        def runner() -> Runner:
            with making:
                database_url = databases.migrated()
            return Runner(database_url, sandbox.sandbox_url, directory / f"runner-{next(numbers)}")

        threads = [threading.Thread(target=_run, args=(runner, waiting)) for _ in range(min(runners, len(cases)))]
        for thread in threads:
            thread.start()
        try:
            yield futures
        finally:
            for future in futures:
                future.cancel()
            for thread in threads:
                thread.join()


def _run(new_runner: Callable[[], Runner], waiting: Waiting) -> None:
    """Take cases until there are none. After one that failed, the next have a runner of their own: what it left open is not theirs."""
    while not waiting.empty():
        try:
            with new_runner() as runner:
                while _take(runner, waiting):
                    pass
        except BaseException as error:
            _fail(waiting, error)


def _take(runner: Runner, waiting: Waiting) -> bool:
    """Carry one case out; whether the runner can take another."""
    try:
        crashes, future = waiting.get_nowait()
    except queue.Empty:
        return False
    if not future.set_running_or_notify_cancel():
        return True
    try:
        outcome = Case(runner, crashes).run()
    except BaseException as error:
        future.set_exception(error)
        return False
    future.set_result(outcome)
    return not outcome.wrong


def _fail(waiting: Waiting, error: BaseException) -> None:
    """A runner could not start or stop: the next case fails for it."""
    with contextlib.suppress(queue.Empty):
        _, future = waiting.get_nowait()
        if future.set_running_or_notify_cancel():
            future.set_exception(error)
