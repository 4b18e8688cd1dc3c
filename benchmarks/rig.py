"""What every benchmark stands on: servers of its own, and the accounts of processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from cli.standalone.servers import EmbeddedPostgres, EmbeddedValkey
from cli.standalone.unprivileged import scratch_directory
from store import migrate
from tests.support.stack import Stack, running


@contextlib.contextmanager
def rig(**settings: str) -> Iterator[tuple[Stack, EmbeddedPostgres, EmbeddedValkey]]:
    """Postgres as it is run in earnest (fsync and synchronous commits on), Valkey, the sandbox; a migrated database."""
    with (
        scratch_directory("turnline-bench-") as directory,
        EmbeddedPostgres(directory / "postgres") as postgres,
        EmbeddedValkey(None) as valkey,
    ):
        logs = Path(directory) / "logs"
        logs.mkdir()
        migrate.upgrade(postgres.url)
        with running(Stack(postgres.url, valkey.url, logs, **settings)) as stack:
            yield stack, postgres, valkey


def tree(pid: int) -> list[psutil.Process]:
    """A process and its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds of the trees under `pids` so far, of children that have ended too."""
    total = 0.0
    for process in (one for pid in pids for one in tree(pid)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_mb(pids: Iterable[int]) -> float:
    """Memory of the trees under `pids`, shared pages counted once among their users (PSS), in MB."""
    total = 0
    for process in (one for pid in pids for one in tree(pid)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total / 2**20


def percentile(values: Iterable[float], part: float) -> float:
    """The value below which `part` (0–1) of `values` lie; nan where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")
