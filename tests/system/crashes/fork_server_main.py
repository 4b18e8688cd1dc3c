"""A program that forks others: with everybody's libraries loaded, and nothing of ours.

What is forked runs `python -m celery …` or `python -m uvicorn …` with the environment it was given, and loads our modules itself, as any
start does. Loading the libraries is four fifths of a start.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import sys
from typing import Any, NoReturn

LIBRARIES = (
    "aiohttp", "celery.apps.worker", "celery.bin.celery", "celery.bin.worker", "celery.worker.consumer", "cryptography.fernet", "fastapi",
    "flower.command", "genai_prices", "httpx_aiohttp", "jmespath", "jsonschema_rs", "kombu.transport.redis", "psycopg", "psycopg_pool",
    "pydantic_settings", "redis.asyncio", "sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.ext.asyncio", "structlog",
    "uuid_utils.compat", "uvicorn.main",
)  # fmt: skip


def main() -> None:
    """Fork what standard input asks for, one JSON object a line; say on standard output who was born and how each ended."""
    for library in LIBRARIES:
        importlib.import_module(library)
    ours = [
        name
        for name in sys.modules
        if name.split(".")[0]
        in (
            "api",
            "cli",
            "engine",
            "failpoints",
            "integrations",
            "models",
            "observability",
            "realtime",
            "settings",
            "store",
            "tasks",
            "worker",
        )
    ]
    assert not ours, f"what is forked must load these itself: {ours}"
    gc.freeze()
    waking, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker)
    alive: dict[int, int] = {}  # pid -> number; a pid is used again after a while
    born = 0
    orders = b""
    while True:
        ready, _, _ = select.select([0, waking], [], [])
        if waking in ready:
            os.read(waking, 1024)
            _reap(alive)
        if 0 in ready:
            read = os.read(0, 65536)
            if not read:
                break
            *whole, orders = (orders + read).split(b"\n")
            for line in whole:
                pid = os.fork()
                if pid == 0:
                    _be(json.loads(line))
                born += 1
                alive[pid] = born
                _say({"number": born, "pid": pid})
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _reap(alive: dict[int, int]) -> None:
    for pid in list(alive):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            _say({"number": alive.pop(pid), "code": os.waitstatus_to_exitcode(status)})


def _say(told: dict[str, int]) -> None:
    os.write(1, json.dumps(told).encode() + b"\n")


def _be(order: dict[str, Any]) -> NoReturn:
    """Become what was ordered."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.closerange(3, 64)
    os.environ.clear()
    os.environ.update(order["env"])
    _, module, *arguments = order["argv"]
    sys.argv = [module, *arguments]
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = _exit_code(end)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _exit_code(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
