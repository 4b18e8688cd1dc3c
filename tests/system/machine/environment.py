"""What a state machine acts on: a real database, and a loop whose clock stands still unless it is moved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import psycopg
from psycopg.rows import dict_row

from store.database import MAINTENANCE_ROLE, Database

Result = TypeVar("Result")
LOOP_PASSES = 30  # more than any callback takes to come out at the next wait


class FrozenLoop(asyncio.SelectorEventLoop):
    """An event loop whose timers are due when somebody says so."""

    now = 1000.0

    def time(self) -> float:
        return self.now


class Environment:
    """One migrated database and one loop, for many examples one after the other. A context manager."""

    def __init__(self, database_url: str) -> None:
        self.loop: FrozenLoop = FrozenLoop()
        self._runner = asyncio.Runner(loop_factory=lambda: self.loop)
        self.database = Database(database_url, pool_size=5)
        self.maintenance = Database(database_url, role=MAINTENANCE_ROLE, pool_size=1)
        self.superuser = psycopg.connect(database_url, autocommit=True, row_factory=dict_row)
        self._asked = 0
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
        """What `work` returns, and whatever it set off has come to a wait of its own."""

        async def and_settle() -> Result:
            result = await work
            await self.settle()
            return result

        return self._runner.run(and_settle())

    async def settle(self) -> None:
        """Return once every worker waits: for an answer from outside, for time to pass, or for good."""
        quiet = 0
        while quiet < LOOP_PASSES:
            await asyncio.sleep(0)
            quiet += 1
            if self._asked:
                async with self._one_at_a_time:
                    quiet = 0

    async def serialized(self, ask: Callable[..., Coroutine[Any, Any, Result]], *parameters: object) -> Result:
        """What a worker hears from the database, which answers by itself."""
        self._asked += 1
        try:
            async with self._one_at_a_time:
                return await ask(*parameters)
        finally:
            self._asked -= 1

    def pass_time(self, seconds: float) -> None:
        """Move the clock, and let everything happen that was due by then."""
        self.loop.now += seconds
        self.run(asyncio.sleep(0))

    def rows(self, query: str, **values: object) -> list[dict[str, Any]]:
        """What the superuser reads, or changes where time or chance must be played."""
        cursor = self.superuser.execute(query, values)
        return cursor.fetchall() if cursor.description else []
