"""ProcessKind cases run one after the other: a database and a broker of their own, an API and a worker that nobody kills."""

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
START_S = 90  # where many start at the same time
QUEUES = ("turns", "messages", "tools", "maintenance")
WORKER = (
    *("-m", "celery", "-A", "tasks", "worker", "--pool", "custom", "-c", "50"),
    *("-n", "armed@test", "-Q", ",".join(QUEUES), "--without-mingle"),
)
_OBJECT = {"type": "object"}


class Armed:
    """A process that something will happen to, and the broker it listens to."""

    def __init__(self, crash: Crash, stack: Stack, process: Process) -> None:
        self.crash, self.stack, self.process = crash, stack, process
        asked = armed({AT: crash.at, CONSENT: CONSENTED})
        assert asked is not None
        self.asked = asked

    @property
    def ended(self) -> bool:
        return self.process.popen.poll() is not None

    @property
    def reached(self) -> bool:
        """It said that it was at its point."""
        return log_line(self.asked.name, self.asked.nth, self.asked.action) in self.process.log.read_text()

    @property
    def happened(self) -> bool:
        """It was killed at its point, or sleeps there, or said that it was there."""
        ended = self.ended  # asked first: it may reach its point, and end, while its words are read
        if not self.reached:
            assert not ended, f"the process ended before its crash point:\n{self.process.log.read_text()[-3000:]}"
            return False
        match self.asked.action:
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
    """One runner. The API rings on the broker that armed workers listen to; the clean worker has another, so that it gets work only when
    the case says so. There is no beat: `sweep` is sent instead, to whichever worker shall find what is due."""

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
        """Processes with the runner's settings and `env`."""
        self._numbers += 1
        directory = self.directory / str(self._numbers)
        directory.mkdir()
        given = {"DATABASE_URL": self.database_url, "OPENAI_BASE_URL": f"{self.sandbox_url}/v1", "TURNLINE_TURN_LEASE_S": "3"}
        made = Stack(self.database_url, broker_url, directory, **(given | env))
        self._stacks.append(made)
        return made

    def arm(self, crash: Crash, *, broker_url: str | None = None, **env: str) -> tuple[Armed, str]:
        """Start the process that `crash` is for; returns it and, where it is an API, its address."""
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
        """A workspace whose agent has these tools, by name with their effects; and its API key."""

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
        """Post a message; the answer, or None where the connection broke before there was one."""
        return self.request("POST", f"/v1/sessions/{session_id}/messages", {"text": text, "message_key": key}, api_key, url)

    def request(self, method: str, path: str, body: dict[str, Any], api_key: str, url: str = "") -> dict[str, Any] | None:
        """One request to the clean API, or the one at `url`."""
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
        """Have the worker on this broker look for what nobody carries, as beat would."""
        self._app(broker_url).send_task("turns.sweep", queue="maintenance", expires=5, retry=False, ignore_result=True)

    def sweep_until(self, broker_url: str, condition: Callable[[], object], within_s: float = 40) -> None:
        """Sweep every quarter of a second until `condition()` is true; fail when it is not in time."""
        deadline = time.monotonic() + within_s
        swept_at = 0.0
        while not condition():
            now = time.monotonic()
            assert now < deadline, f"it did not come about within {within_s} s\n{self.tails()}"
            if now - swept_at > BEAT_S:
                swept_at = now
                with contextlib.suppress(OSError, OperationalError, redis.RedisError):  # the broker may be the one that was killed
                    self.sweep(broker_url)
            time.sleep(0.03)

    def dispatch(self, broker_url: str, turn_id: UUID) -> None:
        """Ring once more for a turn, as a broker does that delivers again."""
        self._app(broker_url).send_task("turns.advance", args=(str(turn_id),), queue="turns", retry=False, ignore_result=True)

    def empty(self, broker_url: str) -> int:
        """Have a broker lose all messages, delivered or not; how many queues held any."""
        with redis.Redis.from_url(broker_url) as client:
            return int(client.delete(*QUEUES, "unacked", "unacked_index"))

    def idle(self, broker_url: str) -> bool:
        """Nothing is waiting or being worked on."""
        with redis.Redis.from_url(broker_url) as client:
            return not client.exists(*QUEUES, "unacked")

    def one(self, query: str, *parameters: object) -> Any:
        """The first column of the query's one row."""
        row = self._db.execute(query, parameters).fetchone()
        return row and row[0]

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """All rows of the query."""
        return self._db.execute(query, parameters).fetchall()

    def counts(self) -> dict[str, Any]:
        """What the sandbox was asked so far, by every runner."""
        with urllib.request.urlopen(f"{self.sandbox_url}/_sandbox/counts", timeout=10) as reply:
            counts: dict[str, Any] = json.load(reply)
        return counts

    def tails(self) -> str:
        """The ends of what every process said."""
        return "\n".join(stack.tails() for stack in self._stacks[:2] + self._stacks[-3:])

    def _app(self, broker_url: str) -> Celery:
        if broker_url not in self._apps:
            settings = Settings(_env_file=None, DATABASE_URL=self.database_url, CELERY_BROKER_URL=broker_url)
            self._apps[broker_url] = make_app(settings)
        return self._apps[broker_url]
