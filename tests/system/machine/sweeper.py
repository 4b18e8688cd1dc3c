"""The sweeper and the broker: dispatches of unclaimed turns, and dispatches that are lost."""

from __future__ import annotations

from hypothesis.stateful import precondition, rule

from store.conversations import sweep
from tests.system.machine.base_machine import INDEXES, BaseMachine


class Sweeper(BaseMachine):
    """Beat's sweep, the broker between it and the workers, and the database's clock."""

    @rule()
    def sweep(self) -> None:
        due = self.run(sweep.due(self.environment.maintenance, stale_s=30.0, in_flight_limit=self.world.in_flight_limit))
        mine = {row["id"] for row in self.world.rows("SELECT id FROM turns WHERE session_id = ANY (%(ids)s)")}
        assert {turn_id for turn_id, _ in due} <= mine, "turns of an earlier example are still due"
        for turn_id, _ in sorted(due):
            self.world.dispatch(turn_id)

    @rule()
    def an_hour_passes(self) -> None:
        """Move the database's times back: parks are over, and dispatches were long ago. Leases are not changed."""
        self.world.rows(
            "UPDATE turns SET not_before = not_before - interval '1 hour', dispatched_at = dispatched_at - interval '1 hour',"
            " opened_at = opened_at - interval '1 hour' WHERE session_id = ANY (%(ids)s) AND status IN ('queued', 'running', 'waiting')"
        )

    @precondition(lambda self: self.world.dispatches)
    @rule(which=INDEXES)
    def a_dispatch_is_lost(self, which: int) -> None:
        self.world.dispatches.remove(self.pick(self.world.dispatches, which))
