"""The command line of each part: what `turnline up` starts as children, and `turnline worker` and its like become."""

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
# Celery's command line takes these plain names for its own options; in a user's shell they mean something else.
_CELERYS = ("APP", "BROKER_URL", "RESULT_BACKEND", "LOADER", "CONFIG_MODULE")


def api(host: str, port: int) -> list[str]:
    """The API. Streams still open five seconds after a stop are cut; their clients resume."""
    return python("uvicorn", "api.app:app", "--host", host, "--port", str(port), "--timeout-graceful-shutdown", "5", "--no-server-header")


def worker(concurrency: int, name: str = "turns-1", queues: str = TURN_QUEUES) -> list[str]:
    """A worker for turns: coroutines on our own pool, `concurrency` of them at a time."""
    return _celery("worker", "--pool", "custom", "-c", str(concurrency), "-n", f"{name}@%h", "-Q", queues, "--without-mingle", "-l", "INFO")


def maintenance(name: str = "maintenance") -> list[str]:
    """A small worker for scheduled jobs, so that a long clean-up never delays a turn; each job has a place in it, so that none keeps the
    sweep waiting."""
    return _celery(
        "worker", "--pool", "threads", "-c", str(len(SCHEDULE)), "-n", f"{name}@%h", "-Q", "maintenance", "--without-mingle", "-l", "INFO"
    )


def beat(schedule: Path) -> list[str]:
    """The scheduler; `schedule` is its own file."""
    return _celery("beat", "-s", str(schedule), "--pidfile=", "-l", "INFO")  # a pid file only keeps it from starting after a kill


def flower(settings: Settings, port: int | None = None) -> list[str]:
    """Flower. Its password comes through the environment: see `flower_env`."""
    options = [f"--address={settings.flower_host}", f"--port={settings.flower_port if port is None else port}", "--max-tasks=20000"]
    if settings.flower_read_only:
        options.append("--read_only=True")
    if flower_prefix(settings):
        options.append(f"--url_prefix={flower_prefix(settings)[1:]}")
    if settings.flower_db:  # kept when it stops, and now and then, for the case that it is killed
        options += ["--persistent=True", f"--db={Path(settings.flower_db).absolute()}", "--state_save_interval=300000"]
    return _celery("flower", *options)


def sandbox(port: int, *, latency_ms: int = 0, token_ms: int = 0) -> list[str]:
    """The stand-in model vendor and tool server; `latency_ms` to its first token, `token_ms` between tokens."""
    return python("sandbox", "--port", str(port), "--latency-ms", str(latency_ms), "--token-ms", str(token_ms))


def migrate() -> list[str]:
    """Bring the database's schema up to date."""
    return python("cli.main", "migrate")


def child_env(environ: Mapping[str, str], **values: str) -> dict[str, str]:
    """`environ` for a part: without the plain names that Celery's command line would take for options, with `values` on top."""
    kept = {name: value for name, value in environ.items() if name not in _CELERYS}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")]))
    return kept | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "CELERY_CUSTOM_WORKER_POOL": "worker.pool:TaskPool"} | values


def env_of(settings: Settings) -> dict[str, str]:
    """The settings that may not have come from the environment, as variables for a part."""
    values = {
        "DATABASE_URL": settings.database_url,
        "CELERY_BROKER_URL": settings.broker_url,
        "TURNLINE_SECRET_KEYS": settings.secret_keys.get_secret_value(),
    }
    return {name: value for name, value in values.items() if value}


def flower_prefix(settings: Settings) -> str:
    """What every path of Flower's begins with: "" or "/ops/flower"."""
    prefix = settings.flower_url_prefix.strip("/")
    return f"/{prefix}" if prefix else ""


def basic_auth_header(basic_auth: str) -> dict[str, str]:
    """The header by which "user:password" logs in."""
    return {"Authorization": "Basic " + base64.b64encode(basic_auth.encode()).decode()}


def flower_env(basic_auth: str) -> dict[str, str]:
    """Flower's credentials, kept off its command line; logins stay good over a restart because the cookie secret follows from them."""
    return {"FLOWER_BASIC_AUTH": basic_auth, "FLOWER_COOKIE_SECRET": hashlib.sha256(f"flower cookies {basic_auth}".encode()).hexdigest()}


def _celery(command: str, *arguments: str) -> list[str]:
    return python("celery", "-A", "tasks", command, *arguments)
