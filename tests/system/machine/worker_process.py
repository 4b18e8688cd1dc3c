"""A worker process that runs one turn: the real task on the real database, paused wherever it waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Protocol, cast
from uuid import UUID

import psycopg

from engine.errors import LeaseLost
from engine.events import ModelReply, ToolCall, ToolOutcome, Usage
from engine.model.request import Bound, Cost, ModelRequest
from engine.tools.spec import ToolSpec
from engine.turn.commit import Outcome
from engine.turn.context import Limits, TurnContext
from integrations.executor import Performer
from integrations.price_list import cost_of
from settings import Settings
from store.conversations.turns import CLAIM, WRITE
from tests.system.machine.environment import Environment
from worker.leases import Leases
from worker.resources import Resources
from worker.turn_runner import run_turn

PRICES = Performer(Settings())  # for `bound` and `estimate`; it sends nothing
LEASE_S = 36_000.0  # of the database's clock, which cannot be stopped


@dataclass(eq=False)
class Wait:
    """One wait of a worker: `what` is model, tool, "before a commit", "after a commit" or "a stopped process"."""

    what: str
    about: Any = None
    on_delta: Callable[[str], None] | None = None
    over: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class WorkerHost(Protocol):
    """The surroundings of a worker process."""

    def dispatch(self, turn_id: UUID) -> None:
        """Publish `turns.advance`."""

    def claimed(self, worker: Worker) -> None:
        """Note that `worker` has claimed its turn."""

    def wrote(self, worker: Worker, row: Mapping[str, Any]) -> None:
        """Note the result of a commit of `worker`."""

    def refused(self, worker: Worker, error: psycopg.Error) -> None:
        """Note that the database refused a statement of `worker`."""

    def requested(self, worker: Worker, request: ModelRequest) -> None:
        """Note a request to the model."""

    def called(self, worker: Worker, tool: ToolSpec | None, call: ToolCall, key: str, begun: bool) -> ToolOutcome | None:
        """Return the outcome of a call that need not be sent (again), or None if it is sent now."""


class Worker:
    """Runs one turn. It goes on by itself to its next wait; then a rule ends the wait, stops the process or kills it."""

    def __init__(
        self, environment: Environment, host: WorkerHost, name: str, turn_id: UUID, *, max_attempts: int, history: int, limits: Limits
    ) -> None:
        self.environment, self.host, self.name, self.turn_id = environment, host, name, turn_id
        self.waits: list[Wait] = []
        self.pause: str | None = None  # where to hold up the next commit: before, after, or "lost" (its reply never arrives)
        self.stopped = False  # as by SIGSTOP: it does nothing more, but the database executes what it had sent
        self.dead = False
        self.fence = -1
        self.session_id: UUID | None = None
        self.claimed_at_offset = -1
        settings = SimpleNamespace(turn_lease_s=LEASE_S, turn_max_attempts=max_attempts, history_events=history, approval_s=86_400.0)
        self.leases = Leases(cast(Any, self), lease_s=LEASE_S, renew_every_s=10.0)
        resources = SimpleNamespace(
            settings=settings,
            database=self,
            owner=lambda: name,
            limits=limits,
            secrets=lambda *_: {},
            leases=self.leases,
            publisher=SimpleNamespace(log_advanced=lambda *_: None, token_delta=lambda *_: None),
            dispatcher=SimpleNamespace(dispatch=host.dispatch),
            performer=self,
        )
        self.leases.start()
        self.task: asyncio.Task[Outcome | None] = asyncio.get_running_loop().create_task(
            run_turn(cast(Resources, resources), turn_id), name=name
        )

    # The task's database

    async def call(self, statement: str, *parameters: Any, share: UUID | None = None) -> dict[str, Any]:
        writes, claims = statement == WRITE, statement == CLAIM
        if writes and self.pause == "before":
            await self._wait(Wait("before a commit"))
        row: dict[str, Any] = await self._ask(self.environment.database.call, statement, *parameters)
        if claims and row["o_outcome"] == "claimed":
            self.fence, self.session_id = row["o_fence"], row["o_session"]
            self.host.claimed(self)
        if writes:
            self.host.wrote(self, row)
        if (writes or claims) and self.pause == "lost":
            self.pause = None
            raise psycopg.OperationalError("the connection broke before the reply came")
        if (writes or claims) and self.pause == "after":
            await self._wait(Wait("after a commit"))
        return row

    async def rows(self, statement: str, *parameters: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._ask(self.environment.database.rows, statement, *parameters)
        return found

    async def _ask(self, ask: Callable[..., Any], *parameters: Any) -> Any:
        if self.stopped:
            await self._wait(Wait("a stopped process"))
        if self.dead:
            raise asyncio.CancelledError
        # A statement that was sent is executed even if the worker is gone; one at a time, so that an example can be repeated.
        sent = asyncio.ensure_future(self.environment.serialized(ask, *parameters))
        try:
            return await asyncio.shield(sent)
        except asyncio.CancelledError:
            await asyncio.gather(sent, return_exceptions=True)
            raise
        except psycopg.Error as error:
            self.host.refused(self, error)
            raise

    # The engine's performer

    async def call_model(self, request: ModelRequest, on_delta: Callable[[str], None]) -> tuple[ModelReply, Cost]:
        self.host.requested(self, request)
        answer = await self._wait(Wait("model", request, on_delta))
        if isinstance(answer, Exception):
            raise answer
        reply = cast(ModelReply, answer)
        return reply, cost_of(request.model_provider, reply.model, reply.usage, datetime.now(UTC))

    async def call_tool(self, context: TurnContext, call: ToolCall, idempotency_key: str, *, begun: bool) -> ToolOutcome:
        known = self.host.called(self, context.tool(call.tool_name), call, idempotency_key, begun)
        return known if known is not None else cast(ToolOutcome, await self._wait(Wait("tool", call)))

    def bound(self, request: ModelRequest) -> Bound:
        return PRICES.bound(request)

    def estimate(self, request: ModelRequest, streamed: str) -> tuple[Usage, Cost]:
        return PRICES.estimate(request, streamed)

    async def _wait(self, wait: Wait) -> Any:
        self.waits.append(wait)
        try:
            return await wait.over
        finally:
            self.waits.remove(wait)

    # Actions of the machine's rules on it

    @property
    def ended(self) -> bool:
        return self.task.done()

    def waiting_for(self, what: str) -> list[Wait]:
        return [] if self.stopped else [wait for wait in self.waits if wait.what == what]

    async def end(self, wait: Wait, answer: Any = None, pause: str | None = None) -> None:
        """End a wait with its answer; pause the next commit at `pause`."""
        self.pause = pause
        wait.over.set_result(answer)

    async def kill(self) -> None:
        """End it as SIGKILL does: nothing more of it reaches the database."""
        self.dead = True
        self.stopped = False
        self.pause = None
        self.task.cancel()
        await self._over()

    async def terminate(self) -> None:
        """End it as SIGTERM does: the task is cancelled and releases its turn."""
        self.pause = None
        self.task.cancel()

    async def resume(self) -> None:
        """Continue it as SIGCONT does."""
        self.stopped = False
        for wait in [wait for wait in self.waits if wait.what == "a stopped process"]:
            wait.over.set_result(None)

    async def _over(self) -> None:
        await self.leases.stop()

    async def result(self) -> Outcome | None:
        """Return the result of an ended task. Raises the task's exception if it is one that no worker should raise."""
        await self._over()
        try:
            return self.task.result()
        except (asyncio.CancelledError, LeaseLost):
            return None
