"""Random schedules of a customer, an operator and workers over many sessions at once: real claims, a world that answers from a die."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

from engine.enums import CancelReason, FinishReason, ToolStatus
from engine.events import ModelReply, ToolCall, ToolOutcome, Usage
from engine.model.request import Bound, Cost, ModelRequest
from engine.turn.cancellation import CancelToken
from engine.turn.commit import CommitResult, TurnCommit
from engine.turn.context import Limits, TurnContext
from engine.turn.runner import TurnRunner
from store.conversations import intake, session_control, turns
from store.database import Database
from tests.support.factories import Tenant, tenant
from tests.support.invariants import violations

AT_ONCE = 50  # sessions under way at a time
LONGEST_S = 0.012
ROOM = 100_000  # a window that never fills
STRATEGIES = (None, None, "enqueue", "interrupt", "rollback")
MODES = ("manual", "manual", "manual", "paused")


@dataclass(slots=True)
class Schedule:
    """One session and its die. `moments` counts what its workers have done, for the operator to strike at one of them."""

    session_id: UUID
    die: Random
    moments: int = 0
    stirred: asyncio.Event = field(default_factory=asyncio.Event)

    async def moment(self) -> None:
        """Something happens now; let others come in between, or not."""
        self.moments += 1
        self.stirred.set()
        await self.pause()

    async def pause(self) -> None:
        """Wait for no time, or for a little."""
        await asyncio.sleep(self.die.choice((0.0, 0.0, self.die.random() * LONGEST_S)))

    async def until(self, moment: int) -> None:
        """Wait for the workers' `moment`, or until nothing has happened for a while."""
        while self.moments < moment:
            self.stirred.clear()
            try:
                async with asyncio.timeout(0.2):
                    await self.stirred.wait()
            except TimeoutError:
                return


class World:
    """Answers with words, or asks for a tool first; now and then the log's write is late."""

    def __init__(self, schedule: Schedule, claim: turns.Claim) -> None:
        self.schedule, self.claim = schedule, claim

    async def write(self, change: TurnCommit) -> CommitResult:
        await self.schedule.moment()
        return await self.claim.write(change)

    async def call_model(self, request: ModelRequest, on_delta: Callable[[str], None]) -> tuple[ModelReply, Cost]:
        await self.schedule.moment()
        on_delta("Half of it")
        await self.schedule.moment()
        usage, cost = Usage(10, 0, 0, 5, 0), Cost(Decimal("0.0001"), "test")
        if self.schedule.die.random() < 0.3:
            call = ToolCall(f"c{self.schedule.die.getrandbits(64)}", "look", {}, "{}")
            return ModelReply("", (call,), FinishReason.TOOL_CALLS, "gpt-4o", usage), cost
        return ModelReply("All of it.", (), FinishReason.STOP, "gpt-4o", usage), cost

    async def call_tool(self, context: TurnContext, call: ToolCall, idempotency_key: str, *, begun: bool) -> ToolOutcome:
        await self.schedule.moment()
        return ToolOutcome(ToolStatus.SUCCEEDED, {"seen": True}, requests=1)

    def bound(self, request: ModelRequest) -> Bound:
        return Bound(100, Decimal("0.01"))

    def estimate(self, request: ModelRequest, streamed: str) -> tuple[Usage, Cost]:
        return Usage(10, 0, 0, 2, 0), Cost(Decimal("0.0001"), "estimate")


class ScheduleWorkers:
    """The workers of all schedules: every ring is carried, and what is carried may be told to stop."""

    def __init__(self, database: Database, made: Tenant, schedules: dict[UUID, Schedule], running: asyncio.TaskGroup) -> None:
        self.database, self.made, self.schedules, self.running = database, made, schedules, running
        self.stops: dict[UUID, CancelToken] = {}
        self.claims = 0

    def dispatch(self, turn_id: UUID | None) -> None:
        """Carry the turn, soon."""
        if turn_id is not None:
            self.running.create_task(self._run_turn(turn_id))

    async def _run_turn(self, turn_id: UUID) -> None:
        self.claims += 1
        limits = Limits(model_calls=4)
        owner = f"owner {self.claims}"
        claim = await turns.claim(
            *(self.database, turn_id, owner), lease_s=60.0, max_attempts=50, history_limit=100, limits=limits, secrets=lambda *_: {}
        )
        if isinstance(claim, turns.NotClaimed):
            self.dispatch(claim.next_turn)
            return
        schedule = self.schedules[claim.session_id]
        world, stop = World(schedule, claim), CancelToken()
        self.stops[claim.session_id] = stop
        await TurnRunner(world, world, claim.context, claim.resume_point, stop).run()
        self.dispatch(claim.next_turn)

    async def look(self) -> None:
        """Tell workers to stop, as a process does; here about every tenth turn hears of it before it would have ended."""
        while True:
            await asyncio.sleep(0.02)
            for session_id, reason in (await turns.stops(self.database, list(self.stops))).items():
                self.stops[session_id].request(CancelReason(reason))

    async def run_schedule(self, schedule: Schedule) -> None:
        """One schedule: a customer writes once or twice while an operator strikes; perhaps all of that again."""
        for _ in range(schedule.die.randint(1, 2)):
            async with asyncio.TaskGroup() as actors:
                actors.create_task(self._write(schedule))
                actors.create_task(self._operate(schedule))

    async def _write(self, schedule: Schedule) -> None:
        for number in range(schedule.die.randint(1, 2)):
            strategy = schedule.die.choice(STRATEGIES)
            accepted = await intake.accept(
                self.database, self.made.workspace_id, schedule.session_id, f"m{number}", strategy=strategy, in_flight_limit=ROOM
            )
            self.dispatch(accepted.to_dispatch)
            await schedule.until(schedule.moments + schedule.die.randint(0, 4))

    async def _operate(self, schedule: Schedule) -> None:
        await schedule.until(schedule.moments + schedule.die.randint(1, 4))
        await schedule.pause()
        await self.switch(schedule, schedule.die.choice(MODES))
        if schedule.die.random() < 0.7:
            await schedule.pause()
            await self.switch(schedule, "auto")

    async def switch(self, schedule: Schedule, mode: str) -> None:
        """Set the session's mode."""
        workspace_id = self.made.workspace_id
        switched = await session_control.set_mode(
            self.database, workspace_id, schedule.session_id, mode, by="operator", in_flight_limit=ROOM
        )
        self.dispatch(switched.to_dispatch)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the schedules came to. `late`: the logs of sessions where a reply of the agent stands behind a switch away from auto.

    `interrupted`: turns that a worker was carrying when a takeover ended them.
    """

    late: list[list[str]]
    switches: int
    replies: int
    interrupted: int
    violations: dict[str, Any]
    took_s: float


async def run_schedules(database: Database, database_url: str, count: int, seed: int) -> Outcome:
    """Play `count` schedules, on dice made from `seed`; then let every session be auto again, and everything come to its end."""
    began = time.monotonic()
    made = await tenant(database, sessions=count, tools=({"name": "look", "effect": "pure"},))
    schedules = {session_id: Schedule(session_id, Random(f"{seed}/{number}")) for number, session_id in enumerate(made.session_ids)}
    room = asyncio.Semaphore(AT_ONCE)

    async def one(workers: ScheduleWorkers, schedule: Schedule) -> None:
        async with room:
            await workers.run_schedule(schedule)

    async with asyncio.TaskGroup() as running:
        workers = ScheduleWorkers(database, made, schedules, running)
        looking = asyncio.create_task(workers.look())
        async with asyncio.TaskGroup() as playing:
            for schedule in schedules.values():
                playing.create_task(one(workers, schedule))
        for schedule in schedules.values():
            await workers.switch(schedule, "auto")
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    return await _judge(database, database_url, made, time.monotonic() - began)


async def _judge(database: Database, database_url: str, made: Tenant, took_s: float) -> Outcome:
    logs: dict[UUID, list[tuple[str, str | None]]] = {}
    async with database.transaction(made.workspace_id) as db:
        found = await db.exec_driver_sql(
            "SELECT session_id, kind || ' of ' || source, content->>'mode' FROM events WHERE workspace_id = %s"
            ' ORDER BY session_id, "offset"',
            (made.workspace_id,),
        )
        for session_id, what, mode in map(tuple, found):
            logs.setdefault(session_id, []).append((what, mode))
        interrupted = await db.exec_driver_sql(
            "SELECT count(*) FROM turns WHERE workspace_id = %s AND error_class = 'TakenOver' AND started_at IS NOT NULL",
            (made.workspace_id,),
        )
    late = [[f"{what} {mode or ''}" for what, mode in log] for log in logs.values() if _late(log)]
    switches = sum(mode is not None for log in logs.values() for _, mode in log)
    replies = sum(what.startswith("agent_message") for log in logs.values() for what, _ in log)
    return Outcome(late, switches, replies, interrupted.scalar_one(), violations(database_url), took_s)


def _late(log: list[tuple[str, str | None]]) -> bool:
    mode = "auto"
    for what, switched in log:
        mode = switched or mode
        if mode != "auto" and what == "agent_message of ai_agent":
            return True
    return False
