"""All actors together, and the end of every example: all open turns are run to their ends, then the invariants are checked."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from tests.system.machine.customers import Customers
from tests.system.machine.invariants import violations
from tests.system.machine.operator import PENDING, Operator
from tests.system.machine.sweeper import Sweeper
from tests.system.machine.workers import Workers, pending_waits

ROUNDS = 200


class Machine(Customers, Operator, Workers, Sweeper):
    """Customer, second device, operator, workers and sweeper, over any order of rules. `tally` adds up the results of all examples."""

    tally: ClassVar[Counter[str]] = Counter()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.run_to_completion()
            self.nothing_is_wrong()
            found = violations(self.world, ended=True)
            assert not found, found
            self.every_message_is_accounted_for()
            self.count()
        finally:
            for worker in self.world.workers:
                self.run(worker.kill())
            self.world.remove_ended_workers()
            self.world.rows("DELETE FROM budgets WHERE workspace_id = %(w)s")
            # So that no turn of a failed example is due in the next.
            self.world.rows(
                "UPDATE turns SET status = 'failed' WHERE session_id = ANY (%(ids)s) AND status IN ('queued', 'running', 'waiting')"
            )

    def run_to_completion(self) -> None:
        """Run all open turns to their ends: no more rules, no dispatches but the sweeper's."""
        world = self.world
        for worker in world.workers:
            self.run(worker.resume())
        for place in range(len(world.session_ids)):
            self.set_mode(place, "auto")
        for _ in range(ROUNDS):
            world.remove_ended_workers()
            self.budget_checker.look()
            if world.workers:
                self._advance_one_wait()
            elif pending := [one for one in world.rows(PENDING) if one["in_time"]]:
                self.decide_one(pending[0], "denied")
            elif self.open_turns():
                for place in range(len(world.session_ids)):
                    self.release(place)
                self.an_hour_passes()
                world.rows("UPDATE sessions SET lease_until = now() - interval '1 second' WHERE id = ANY (%(ids)s) AND lease_until > now()")
                world.dispatches.clear()
                self.sweep()
                assert world.dispatches, "the sweeper does not find an open turn"
                world.start_worker(world.dispatches.pop(0))
            else:
                return
        raise AssertionError("the turns do not come to an end")

    def _advance_one_wait(self) -> None:
        for what in ("before a commit", "after a commit"):
            for worker, wait in pending_waits(self, what):
                self.answer(worker, wait, None, None)
                return
        if pending_waits(self, "model"):
            self.the_model_replies(0, None, False)
        elif pending_waits(self, "tool"):
            self.a_tool_answers(0, None, "succeeded")
        else:
            self.time_passes(5.0)

    def count(self) -> None:
        """Add up the results of the example, to show that the machine reaches every state."""
        came = self.world.rows(
            """SELECT 'turns: ' || concat_ws(' ', status, error_class) AS what, count(*) AS n FROM turns
                WHERE session_id = ANY (%(ids)s) GROUP BY 1
            UNION ALL SELECT 'tool calls: ' || coalesce(effect, 'no such tool') || ' ' || state, count(*) FROM tool_calls
                WHERE session_id = ANY (%(ids)s) GROUP BY 1
            UNION ALL SELECT 'approvals: ' || status || CASE WHEN used_at IS NULL THEN '' ELSE ', used' END, count(*) FROM approvals
                WHERE session_id = ANY (%(ids)s) GROUP BY 1
            UNION ALL SELECT 'model calls: ' || state, count(*) FROM model_calls WHERE session_id = ANY (%(ids)s) GROUP BY 1
            UNION ALL SELECT 'events: ' || (content->>'status'), count(*) FROM events
                WHERE session_id = ANY (%(ids)s) AND kind = 'status_update' GROUP BY 1"""
        )
        self.tally.update({row["what"]: row["n"] for row in came})
        self.tally["messages"] += len(self.world.messages)
        self.tally["examples"] += 1

    def every_message_is_accounted_for(self) -> None:
        """Each accepted message is in the log once, at the offset that was returned for it."""
        log = self.world.rows(
            """SELECT session_id, "offset", content->>'text' AS text, message_key AS key, turn_id, id AS event_id
            FROM events WHERE session_id = ANY (%(ids)s) AND kind = 'customer_message' ORDER BY 1, 2"""
        )
        accepted = sorted(self.world.messages, key=lambda one: (one.session_id, one.offset))
        assert [tuple(row.values()) for row in log] == [
            (one.session_id, one.offset, one.text, one.key, one.turn_id, one.event_id) for one in accepted
        ]
