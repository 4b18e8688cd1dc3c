"""Child processes and ports: what `up`, the demo and the tests need to start servers and leave none behind."""

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
    """A `preexec_fn` by which the kernel sends the child `death_signal` once the thread that started it is gone.

    The *thread*, not the process: start children from one that lives as long as they should. None where the
    kernel has no such thing (macOS); there a SIGKILLed parent leaves its children to the next start.
    """
    libc = _libc
    if libc is None:
        return None
    parent = os.getpid()

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask


def port_is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen on `port` now. A connection still closing from an earlier server does not count."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port on loopback that nobody listens on now. Somebody else may take it before you do: try again then."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def tail(log: Path, lines: int = 15) -> str:
    """The last `lines` lines of `log`, or "" where there is none."""
    with contextlib.suppress(FileNotFoundError), log.open(errors="replace") as text:
        return "".join(deque(text, maxlen=lines)).rstrip()
    return ""


def stop(process: subprocess.Popen[bytes], *steps: tuple[signal.Signals, float]) -> None:
    """Send each signal of `steps` in turn, giving the process that many seconds after each, and SIGKILL at last."""
    for number, patience_s in (*steps, (signal.SIGKILL, 10.0)):
        if process.poll() is not None:
            return
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)


def listener(port: int) -> str:
    """Who listens on `port`, for a sentence: "process 41 (postgres)", or "another program" where we may not know."""
    untyped: Any = psutil
    with contextlib.suppress(psutil.Error):
        for connection in untyped.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port and connection.pid:
                return f"process {connection.pid} ({untyped.Process(connection.pid).name()})"
    return "another program"
