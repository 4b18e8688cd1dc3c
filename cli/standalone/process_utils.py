"""Helpers for child processes, ports and log files, used by `turnline up`, the demo and the tests."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

LOOPBACK = "127.0.0.1"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(death_signal: signal.Signals) -> Callable[[], None] | None:
    """Return a `preexec_fn` that makes the kernel send the child `death_signal` when the thread that started it ends.

    The kernel watches the *thread*, not the process, so start children from a thread that lives as long as they should.
    Returns None on systems without this feature (macOS); a parent killed there leaves its children running.
    """
    libc = _libc
    if libc is None:
        return None
    parent = os.getpid()

    def set_death_signal() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the call
            os._exit(1)

    return set_death_signal


def port_is_free(port: int, host: str = LOOPBACK) -> bool:
    """Return True if a server could listen on `port` now. Connections of an earlier server that are still closing do not count."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a free port on loopback. Another program may take it before the caller does; try again in that case."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def tail(log: Path, lines: int = 15) -> str:
    """Return the last `lines` lines of `log`, or "" if the file does not exist."""
    with contextlib.suppress(FileNotFoundError), log.open(errors="replace") as text:
        return "".join(deque(text, maxlen=lines)).rstrip()
    return ""


def stop(process: subprocess.Popen[bytes], *steps: tuple[signal.Signals, float]) -> None:
    """Stop `process`: send the signal of each step, wait up to that step's seconds, and send SIGKILL at the end."""
    for number, timeout_s in (*steps, (signal.SIGKILL, 10.0)):
        if process.poll() is not None:
            return
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)


def listener(port: int) -> str:
    """Return a description of the process listening on `port`: "process 41 (postgres)", or "another program" if it is not visible."""
    untyped: Any = psutil
    with contextlib.suppress(psutil.Error):
        for connection in untyped.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port and connection.pid:
                return f"process {connection.pid} ({untyped.Process(connection.pid).name()})"
    return "another program"
