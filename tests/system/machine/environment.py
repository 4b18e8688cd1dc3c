"""The environment of a state machine: a real database, and a loop whose clock stands still unless it is moved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import psycopg
from psycopg.rows import dict_row

from store.database import MAINTENANCE_ROLE, Database

Result = TypeVar("Result")
LOOP_PASSES = 30  # more loop passes than any callback needs to reach its next wait


class FrozenLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock moves only when it is set."""

    now = 1000.0

    def time(self) -> float:
        return self.now


class Environment:
    """One migrated database and one loop, shared by many examples in sequence. A context manager."""

    def __init__(self, database_url: str) -> None:
        self.loop: FrozenLoop = FrozenLoop()
        self._runner = asyncio.Runner(loop_factory=lambda: self.loop)
        self.database = Database(database_url, pool_size=5)
        self.maintenance = Database(database_url, role=MAINTENANCE_ROLE, pool_size=1)
        self.superuser = psycopg.connect(database_url, autocommit=True, row_factory=dict_row)
        self._pending_calls = 0
        self._one_at_a_time = asyncio.Lock()

    def __enter__(self) -> Environment:
        self.run(self.database.open())
        self.run(self.maintenance.open())
        return self

    def __exit__(self, *exc: object) -> None:
        self.run(self.database.close())
        self.run(self.maintenance.close())
        self.superuser.close()
        self._runner.close()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Return the result of `work`, once everything that it started waits."""

        async def and_settle() -> Result:
            result = await work
            await self.settle()
            return result

        return self._runner.run(and_settle())

    async def settle(self) -> None:
        """Return once every worker waits for an answer from outside or for time to pass, or has ended."""
        quiet = 0
        while quiet < LOOP_PASSES:
            await asyncio.sleep(0)
            quiet += 1
            if self._pending_calls:
                async with self._one_at_a_time:
                    quiet = 0

    async def serialized(self, ask: Callable[..., Coroutine[Any, Any, Result]], *parameters: object) -> Result:
        """Return the result of a worker's database call. Calls are made one at a time, so that an example can be repeated."""
        self._pending_calls += 1
        try:
            async with self._one_at_a_time:
                return await ask(*parameters)
        finally:
            self._pending_calls -= 1

    def pass_time(self, seconds: float) -> None:
        """Move the clock, and run everything that is due by then."""
        self.loop.now += seconds
        self.run(asyncio.sleep(0))

    def rows(self, query: str, **values: object) -> list[dict[str, Any]]:
        """Run a statement as the superuser, to read, or to simulate time and chance; return its rows."""
        cursor = self.superuser.execute(query, values)
        return cursor.fetchall() if cursor.description else []
