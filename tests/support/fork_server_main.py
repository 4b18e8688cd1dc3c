"""The fork server's process: it has loaded the libraries that all our processes use, and no module of ours.

A forked child runs `python -m celery …`, `python -m uvicorn …` or `python -m cli.main …` with the environment it is given, and loads our
modules itself, as on any start. Loading the libraries is four fifths of a start.
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
    "aiohttp", "alembic.command", "anyio", "celery.apps.beat", "celery.apps.worker", "celery.bin.celery", "celery.bin.worker",
    "celery.worker.consumer", "cryptography.fernet", "cryptography.hazmat.primitives.ciphers.aead", "fastapi", "flower.command",
    "genai_prices", "httpx", "httpx_aiohttp", "jmespath", "jsonschema_rs", "kombu.transport.pyamqp", "kombu.transport.redis",
    "prometheus_client", "psutil", "psycopg", "psycopg_pool", "pydantic_settings", "redbeat", "redis.asyncio", "rich.live", "rich.table",
    "sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.ext.asyncio", "structlog", "uuid_utils.compat", "uvicorn.main",
)  # fmt: skip
OURS = {"api", "cli", "engine", "failpoints", "integrations", "models", "observability", "realtime", "settings", "store", "tasks", "worker"}


def main() -> None:
    """Fork a child for each order on standard input; report its start and its end on standard output. All are JSON lines."""
    for library in LIBRARIES:
        importlib.import_module(library)
    ours = [name for name in sys.modules if name.split(".")[0] in OURS]
    assert not ours, f"children must load these themselves: {ours}"
    gc.freeze()
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker)
    running: dict[int, int] = {}  # pid -> number; a pid is used again after a while
    started = 0
    orders = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 1024)
            _reap(running)
        if 0 in ready:
            read = os.read(0, 65536)
            if not read:
                break
            *lines, orders = (orders + read).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    _become(json.loads(line))
                started += 1
                running[pid] = started
                _report({"number": started, "pid": pid})
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _reap(running: dict[int, int]) -> None:
    for pid in list(running):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            _report({"number": running.pop(pid), "code": os.waitstatus_to_exitcode(status)})


def _report(report: dict[str, int]) -> None:
    os.write(1, json.dumps(report).encode() + b"\n")


def _become(order: dict[str, Any]) -> NoReturn:
    """Run the module that was ordered, and exit as it does."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    append = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    files = [os.open(os.devnull, os.O_RDONLY), os.open(order["stdout"], append, 0o600), os.open(order["stderr"], append, 0o600)]
    for target, source in enumerate(files):
        os.dup2(source, target)
    os.closerange(3, 64)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    sys.path[0] = order["cwd"]
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
