"""Several concurrent runners, which share a Postgres and a sandbox and take one case after the other."""

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
CaseQueue = queue.SimpleQueue[tuple[tuple[Crash, ...], Future[Outcome]]]


@contextmanager
def run_cases(databases: Databases, directory: Path, cases: Cases, runners: int) -> Iterator[list[Future[Outcome]]]:
    """Run `cases`; yield the futures of their outcomes, in their order. Cases that have not begun are cancelled on leaving."""
    (directory / "sandbox").mkdir()
    sandbox = Stack("", "", directory / "sandbox")
    case_queue: CaseQueue = queue.SimpleQueue()
    futures: list[Future[Outcome]] = []
    for crashes in cases:
        futures.append(Future())
        case_queue.put((crashes, futures[-1]))
    with running(sandbox):
        numbers = itertools.count()
        making = threading.Lock()

        def runner() -> Runner:
            with making:
                database_url = databases.migrated()
            return Runner(database_url, sandbox.sandbox_url, directory / f"runner-{next(numbers)}")

        threads = [threading.Thread(target=_run, args=(runner, case_queue)) for _ in range(min(runners, len(cases)))]
        for thread in threads:
            thread.start()
        try:
            yield futures
        finally:
            for future in futures:
                future.cancel()
            for thread in threads:
                thread.join()


def _run(new_runner: Callable[[], Runner], case_queue: CaseQueue) -> None:
    """Run cases until none is left. A failed case may leave turns open, so the next gets a new runner."""
    while not case_queue.empty():
        try:
            with new_runner() as runner:
                while _take(runner, case_queue):
                    pass
        except BaseException as error:
            _fail(case_queue, error)


def _take(runner: Runner, case_queue: CaseQueue) -> bool:
    """Run one case. Return True if the runner can take another."""
    try:
        crashes, future = case_queue.get_nowait()
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


def _fail(case_queue: CaseQueue, error: BaseException) -> None:
    """Fail the next case with the error of a runner that could not start or stop."""
    with contextlib.suppress(queue.Empty):
        _, future = case_queue.get_nowait()
        if future.set_running_or_notify_cancel():
            future.set_exception(error)
