"""A runner of cases, one after the other: a database and a broker of its own, and an API and a worker that are never killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import psutil
import psycopg
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from failpoints import AT, CONSENT, CONSENTED, armed, log_line
from settings import Settings
from store.catalog import workspaces
from store.database import Database
from tasks.celery_app import make_app
from tests.support.factories import Tenant, tenant
from tests.support.servers import EmbeddedValkey, free_port, until
from tests.support.stack import Process, Stack, answers
from tests.system.crashes.crash_table import Crash, ProcessKind

BEAT_S = 0.25
START_S = 90  # many may start at the same time
QUEUES = ("turns", "messages", "tools", "maintenance")
WORKER = (
    *("-m", "celery", "-A", "tasks", "worker", "--pool", "custom", "-c", "50"),
    *("-n", "armed@test", "-Q", ",".join(QUEUES), "--without-mingle"),
)
_OBJECT = {"type": "object"}


class Armed:
    """A process with an armed failpoint."""

    def __init__(self, crash: Crash, stack: Stack, process: Process) -> None:
        self.crash, self.stack, self.process = crash, stack, process
        failpoint = armed({AT: crash.at, CONSENT: CONSENTED})
        assert failpoint is not None
        self.failpoint = failpoint

    @property
    def ended(self) -> bool:
        return self.process.popen.poll() is not None

    @property
    def reached(self) -> bool:
        """Return True if it has logged that it reached its failpoint."""
        return log_line(self.failpoint.name, self.failpoint.nth, self.failpoint.action) in self.process.log.read_text()

    @property
    def happened(self) -> bool:
        """Return True if it was killed or suspended at its failpoint, or has logged that it reached it, as its action demands."""
        ended = self.ended  # read first: it may reach its failpoint and end while its log is read
        if not self.reached:
            assert not ended, f"the process ended before its crash point:\n{self.process.log.read_text()[-3000:]}"
            return False
        match self.failpoint.action:
            case "kill":
                assert not self.ended or self.process.popen.returncode == -signal.SIGKILL
                return self.ended
            case "stop":
                return bool(psutil.Process(self.process.popen.pid).status() == psutil.STATUS_STOPPED)
            case _:
                return True

    def resume(self) -> None:
        self.process.popen.send_signal(signal.SIGCONT)


class Runner:
    """One runner. The API dispatches on the broker of the armed workers; the clean worker has another broker, so that it gets work only
    when the case says so. There is no beat: cases send `turns.sweep` to the worker that should find the due turns."""

    def __init__(self, database_url: str, sandbox_url: str, directory: Path) -> None:
        directory.mkdir()
        self.database_url, self.sandbox_url, self.directory = database_url, sandbox_url, directory
        self.valkey = EmbeddedValkey(None)
        self._numbers = 0
        self._stacks: list[Stack] = []
        self._apps: dict[str, Celery] = {}

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            opened.enter_context(self.valkey)
            self._db = opened.enter_context(psycopg.connect(self.database_url, autocommit=True))
            opened.callback(self._close)
            self.armed_broker, self.clean_broker = self.valkey.url_of(0), self.valkey.url_of(1)
            worker = self.stack(self.clean_broker).start(*WORKER)
            _, self.api_url = self._api(self.stack(self.armed_broker))
            until(lambda: worker.logged("ready."), START_S)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _close(self) -> None:
        for stack in reversed(self._stacks):
            stack.close()
        for app in self._apps.values():
            app.close()

    def stack(self, broker_url: str, **env: str) -> Stack:
        """Return a stack, whose processes get the runner's settings and `env`."""
        self._numbers += 1
        directory = self.directory / str(self._numbers)
        directory.mkdir()
        given = {"DATABASE_URL": self.database_url, "OPENAI_BASE_URL": f"{self.sandbox_url}/v1", "TURNLINE_TURN_LEASE_S": "3"}
        made = Stack(self.database_url, broker_url, directory, **(given | env))
        self._stacks.append(made)
        return made

    def arm(self, crash: Crash, *, broker_url: str | None = None, **env: str) -> tuple[Armed, str]:
        """Start the process that will crash. Return it and its address, which is empty for a worker."""
        stack = self.stack(broker_url or self.armed_broker, **{AT: crash.at, CONSENT: CONSENTED}, **env)
        if crash.where is ProcessKind.WORKER:
            return Armed(crash, stack, stack.start(*WORKER)), ""
        process, url = self._api(stack)
        return Armed(crash, stack, process), url

    def _api(self, stack: Stack) -> tuple[Process, str]:
        port = free_port()
        process = stack.start("-m", "uvicorn", "api.app:app", "--port", str(port), "--log-level", "warning")
        until(lambda: process.logged("") and answers(f"http://127.0.0.1:{port}/healthz"), START_S)
        return process, f"http://127.0.0.1:{port}"

    def tenant(self, text_of_tools: dict[str, str]) -> tuple[Tenant, str]:
        """Make a workspace whose agent has these tools (effects by name). Return it and its API key."""

        async def make() -> tuple[Tenant, str]:
            database = Database(self.database_url, pool_size=1)
            await database.open()
            try:
                created = await workspaces.create(database, "Crash")
                tools = tuple(
                    {
                        "name": name,
                        "effect": effect,
                        "parameters": _OBJECT,
                        "configuration": {"approval": "never"},
                        "integration": {"configuration": {"url": f"{self.sandbox_url}/tools/{name}"}},
                    }
                    for name, effect in text_of_tools.items()
                )
                return await tenant(database, workspace_id=created.workspace_id, tools=tools, strategy="enqueue"), created.api_key
            finally:
                await database.close()

        return asyncio.run(make())

    def post(self, api_key: str, session_id: UUID, key: str, text: str, url: str = "") -> dict[str, Any] | None:
        """Post a message. Return the answer, or None if the connection broke first."""
        return self.request("POST", f"/v1/sessions/{session_id}/messages", {"text": text, "message_key": key}, api_key, url)

    def request(self, method: str, path: str, body: dict[str, Any], api_key: str, url: str = "") -> dict[str, Any] | None:
        """Send one request to the clean API, or to the API at `url`. Return the answer, or None if the connection broke first."""
        headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
        request = urllib.request.Request((url or self.api_url) + path, json.dumps(body).encode(), headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                document: dict[str, Any] = json.load(reply)
        except urllib.error.HTTPError as refusal:
            raise AssertionError(f"{refusal.code}: {refusal.read()[:500]!r}") from None
        except OSError:
            return None
        return document

    def sweep(self, broker_url: str) -> None:
        """Have the worker on this broker look for unclaimed turns, as beat would."""
        self._app(broker_url).send_task("turns.sweep", queue="maintenance", expires=5, retry=False, ignore_result=True)

    def sweep_until(self, broker_url: str, condition: Callable[[], object], within_s: float = 40) -> None:
        """Sweep every quarter of a second until `condition()` is true; fail if it takes too long."""
        deadline = time.monotonic() + within_s
        swept_at = 0.0
        while not condition():
            now = time.monotonic()
            assert now < deadline, f"the condition was not met within {within_s} s\n{self.tails()}"
            if now - swept_at > BEAT_S:
                swept_at = now
                with contextlib.suppress(OSError, OperationalError, redis.RedisError):  # the broker may be the one that was killed
                    self.sweep(broker_url)
            time.sleep(0.03)

    def dispatch(self, broker_url: str, turn_id: UUID) -> None:
        """Dispatch a turn once more, as a broker that delivers a message again."""
        self._app(broker_url).send_task("turns.advance", args=(str(turn_id),), queue="turns", retry=False, ignore_result=True)

    def empty(self, broker_url: str) -> int:
        """Have a broker lose all messages, also unacknowledged ones. Return the number of queues that held any."""
        with redis.Redis.from_url(broker_url) as client:
            return int(client.delete(*QUEUES, "unacked", "unacked_index"))

    def idle(self, broker_url: str) -> bool:
        """Return True if no message is queued or unacknowledged."""
        with redis.Redis.from_url(broker_url) as client:
            return not client.exists(*QUEUES, "unacked")

    def one(self, query: str, *parameters: object) -> Any:
        """Return the first column of the query's only row."""
        row = self._db.execute(query, parameters).fetchone()
        return row and row[0]

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return all rows of the query."""
        return self._db.execute(query, parameters).fetchall()

    def counts(self) -> dict[str, Any]:
        """Return the counts of all requests to the sandbox so far, by every runner."""
        with urllib.request.urlopen(f"{self.sandbox_url}/_sandbox/counts", timeout=10) as reply:
            counts: dict[str, Any] = json.load(reply)
        return counts

    def tails(self) -> str:
        """Return the last lines of every process's output."""
        return "\n".join(stack.tails() for stack in self._stacks[:2] + self._stacks[-3:])

    def _app(self, broker_url: str) -> Celery:
        if broker_url not in self._apps:
            settings = Settings(_env_file=None, DATABASE_URL=self.database_url, CELERY_BROKER_URL=broker_url)
            self._apps[broker_url] = make_app(settings)
        return self._apps[broker_url]
