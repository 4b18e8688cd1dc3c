"""Random schedules of a customer, an operator and workers over many sessions at once: real claims, random answers."""

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

AT_ONCE = 50  # sessions at a time
LONGEST_S = 0.012
IN_FLIGHT_LIMIT = 100_000  # an in-flight limit that is never reached
STRATEGIES = (None, None, "enqueue", "interrupt", "rollback")
MODES = ("manual", "manual", "manual", "paused")


@dataclass(slots=True)
class Schedule:
    """One session and its random numbers. `moments` counts its workers' actions, so that the operator can act at one of them."""

    session_id: UUID
    random: Random
    moments: int = 0
    acted: asyncio.Event = field(default_factory=asyncio.Event)

    async def moment(self) -> None:
        """Count an action of a worker, and let the others run for a random time."""
        self.moments += 1
        self.acted.set()
        await self.pause()

    async def pause(self) -> None:
        """Wait for a random short time, often for none."""
        await asyncio.sleep(self.random.choice((0.0, 0.0, self.random.random() * LONGEST_S)))

    async def until(self, moment: int) -> None:
        """Wait for the workers' `moment`, or until they have done nothing for 0.2 s."""
        while self.moments < moment:
            self.acted.clear()
            try:
                async with asyncio.timeout(0.2):
                    await self.acted.wait()
            except TimeoutError:
                return


class World:
    """A turn's log and performer: the model answers with text or a tool call, and every action takes a random time."""

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
        if self.schedule.random.random() < 0.3:
            call = ToolCall(f"c{self.schedule.random.getrandbits(64)}", "look", {}, "{}")
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
    """The workers of all schedules: they run every dispatched turn, and cancel turns on request."""

    def __init__(self, database: Database, made: Tenant, schedules: dict[UUID, Schedule], running: asyncio.TaskGroup) -> None:
        self.database, self.made, self.schedules, self.running = database, made, schedules, running
        self.tokens: dict[UUID, CancelToken] = {}
        self.claims = 0

    def dispatch(self, turn_id: UUID | None) -> None:
        """Start running the turn."""
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
        world, cancel = World(schedule, claim), CancelToken()
        self.tokens[claim.session_id] = cancel
        await TurnRunner(world, world, claim.context, claim.resume_point, cancel).run()
        self.dispatch(claim.next_turn)

    async def look(self) -> None:
        """Cancel running turns on request, as a worker process does; about every tenth turn gets it before its end."""
        while True:
            await asyncio.sleep(0.02)
            for session_id, reason in (await turns.stops(self.database, list(self.tokens))).items():
                self.tokens[session_id].request(CancelReason(reason))

    async def run_schedule(self, schedule: Schedule) -> None:
        """Run one schedule: a customer writes once or twice while an operator changes the mode, and perhaps both again."""
        for _ in range(schedule.random.randint(1, 2)):
            async with asyncio.TaskGroup() as actors:
                actors.create_task(self._write(schedule))
                actors.create_task(self._operate(schedule))

    async def _write(self, schedule: Schedule) -> None:
        for number in range(schedule.random.randint(1, 2)):
            strategy = schedule.random.choice(STRATEGIES)
            accepted = await intake.accept(
                self.database, self.made.workspace_id, schedule.session_id, f"m{number}", strategy=strategy, in_flight_limit=IN_FLIGHT_LIMIT
            )
            self.dispatch(accepted.to_dispatch)
            await schedule.until(schedule.moments + schedule.random.randint(0, 4))

    async def _operate(self, schedule: Schedule) -> None:
        await schedule.until(schedule.moments + schedule.random.randint(1, 4))
        await schedule.pause()
        await self.switch(schedule, schedule.random.choice(MODES))
        if schedule.random.random() < 0.7:
            await schedule.pause()
            await self.switch(schedule, "auto")

    async def switch(self, schedule: Schedule, mode: str) -> None:
        """Set the session's mode."""
        workspace_id = self.made.workspace_id
        switched = await session_control.set_mode(
            self.database, workspace_id, schedule.session_id, mode, by="operator", in_flight_limit=IN_FLIGHT_LIMIT
        )
        self.dispatch(switched.to_dispatch)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of the schedules. `late`: the logs of sessions in which a reply of the agent follows a switch away from auto.

    `interrupted`: turns that a worker was running when a takeover ended them.
    """

    late: list[list[str]]
    switches: int
    replies: int
    interrupted: int
    violations: dict[str, Any]
    took_s: float


async def run_schedules(database: Database, database_url: str, count: int, seed: int) -> Outcome:
    """Run `count` schedules with random numbers from `seed`; then set every session to auto, and run all turns to their ends."""
    began = time.monotonic()
    made = await tenant(database, sessions=count, tools=({"name": "look", "effect": "pure"},))
    schedules = {session_id: Schedule(session_id, Random(f"{seed}/{number}")) for number, session_id in enumerate(made.session_ids)}
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(workers: ScheduleWorkers, schedule: Schedule) -> None:
        async with slots:
            await workers.run_schedule(schedule)

    async with asyncio.TaskGroup() as running:
        workers = ScheduleWorkers(database, made, schedules, running)
        looker = asyncio.create_task(workers.look())
        async with asyncio.TaskGroup() as schedulers:
            for schedule in schedules.values():
                schedulers.create_task(one(workers, schedule))
        for schedule in schedules.values():
            await workers.switch(schedule, "auto")
    looker.cancel()
    await asyncio.gather(looker, return_exceptions=True)
    return await _result(database, database_url, made, time.monotonic() - began)


async def _result(database: Database, database_url: str, made: Tenant, took_s: float) -> Outcome:
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
