"""The command line and environment of each process: started by `turnline up` as children, and run in place by `turnline worker` etc."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from beat_schedule import SCHEDULE
from cli.standalone.process import python
from settings import Settings

ROOT = Path(__file__).resolve().parents[2]
TURN_QUEUES = "turns,messages,tools"
# Celery's command line reads its own options from these variables; in a user's shell they usually mean something else.
_CELERY_OPTION_VARIABLES = ("APP", "BROKER_URL", "RESULT_BACKEND", "LOADER", "CONFIG_MODULE")


def api(host: str, port: int) -> list[str]:
    """Return the command of the API. Streams still open five seconds after a stop are cut; clients reconnect and resume."""
    return python("uvicorn", "api.app:app", "--host", host, "--port", str(port), "--timeout-graceful-shutdown", "5", "--no-server-header")


def worker(concurrency: int, name: str = "turns-1", queues: str = TURN_QUEUES) -> list[str]:
    """Return the command of a worker for turns, which runs up to `concurrency` coroutines at a time on our own pool."""
    return _celery("worker", "--pool", "custom", "-c", str(concurrency), "-n", f"{name}@%h", "-Q", queues, "--without-mingle", "-l", "INFO")


def maintenance(name: str = "maintenance") -> list[str]:
    """Return the command of the worker for scheduled jobs, which is separate so that a long clean-up never delays a turn.

    It has one thread per job, so that a long job never delays the sweep.
    """
    return _celery(
        "worker", "--pool", "threads", "-c", str(len(SCHEDULE)), "-n", f"{name}@%h", "-Q", "maintenance", "--without-mingle", "-l", "INFO"
    )


def beat(schedule: Path) -> list[str]:
    """Return the command of the scheduler, which keeps its state in the file `schedule`."""
    return _celery("beat", "-s", str(schedule), "--pidfile=", "-l", "INFO")  # a stale pid file would prevent a start after SIGKILL


def flower(settings: Settings, port: int | None = None) -> list[str]:
    """Return the command of Flower. Its password is passed in the environment: see `flower_env`."""
    options = [f"--address={settings.flower_host}", f"--port={settings.flower_port if port is None else port}", "--max-tasks=20000"]
    if settings.flower_read_only:
        options.append("--read_only=True")
    if flower_prefix(settings):
        options.append(f"--url_prefix={flower_prefix(settings)[1:]}")
    if settings.flower_db:  # saved when Flower stops, and every five minutes in case it is killed
        options += ["--persistent=True", f"--db={Path(settings.flower_db).absolute()}", "--state_save_interval=300000"]
    return _celery("flower", *options)


def sandbox(port: int, *, latency_ms: int = 0, token_ms: int = 0) -> list[str]:
    """Return the command of the sandbox: `latency_ms` before its first token, `token_ms` between tokens."""
    return python("sandbox", "--port", str(port), "--latency-ms", str(latency_ms), "--token-ms", str(token_ms))


def migrate() -> list[str]:
    """Return the command that upgrades the database's schema."""
    return python("cli.main", "migrate")


def child_env(environ: Mapping[str, str], **values: str) -> dict[str, str]:
    """Return the environment for one of our processes: `environ` without the variables Celery reads as options, plus `values`."""
    kept = {name: value for name, value in environ.items() if name not in _CELERY_OPTION_VARIABLES}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")]))
    return kept | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "CELERY_CUSTOM_WORKER_POOL": "worker.pool:TaskPool"} | values


def settings_env(settings: Settings) -> dict[str, str]:
    """Return, as environment variables, the settings that `turnline up` may have generated."""
    values = {
        "DATABASE_URL": settings.database_url,
        "CELERY_BROKER_URL": settings.broker_url,
        "TURNLINE_SECRET_KEYS": settings.secret_keys.get_secret_value(),
    }
    return {name: value for name, value in values.items() if value}


def flower_prefix(settings: Settings) -> str:
    """Return the prefix of every Flower path, such as "/ops/flower", or ""."""
    prefix = settings.flower_url_prefix.strip("/")
    return f"/{prefix}" if prefix else ""


def basic_auth_header(basic_auth: str) -> dict[str, str]:
    """Return the Authorization header for "user:password"."""
    return {"Authorization": "Basic " + base64.b64encode(basic_auth.encode()).decode()}


def flower_env(basic_auth: str) -> dict[str, str]:
    """Return Flower's credentials as environment variables, so that they do not appear on its command line.

    The cookie secret is derived from the password, so that logins survive a restart.
    """
    return {"FLOWER_BASIC_AUTH": basic_auth, "FLOWER_COOKIE_SECRET": hashlib.sha256(f"flower cookies {basic_auth}".encode()).hexdigest()}


def _celery(command: str, *arguments: str) -> list[str]:
    return python("celery", "-A", "tasks", command, *arguments)
