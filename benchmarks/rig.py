"""Servers for a benchmark, and CPU and memory of processes."""

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
    """Start Postgres with production durability (fsync and synchronous commits) and a migrated database, Valkey and the sandbox."""
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


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU seconds of the process trees of `pids`, including children that have ended."""
    total = 0.0
    for process in (one for pid in pids for one in process_tree(pid)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_mb(pids: Iterable[int]) -> float:
    """Return the memory of the process trees of `pids` in MB, with shared pages divided among their users (PSS)."""
    total = 0
    for process in (one for pid in pids for one in process_tree(pid)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total / 2**20


def percentile(values: Iterable[float], part: float) -> float:
    """Return the value below which `part` (0 to 1) of `values` lie; nan if there are no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")
