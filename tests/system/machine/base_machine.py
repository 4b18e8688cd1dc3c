"""The base of all actors of the state machine: the world, and the checks after each rule."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from store.conversations.intake import STRATEGIES
from tests.system.machine.environment import Environment
from tests.system.machine.invariants import BudgetChecker, violations
from tests.system.machine.world import World

Item = TypeVar("Item")
OPEN = "('queued', 'running', 'waiting')"
INDEXES = st.integers(0, 7)


class BaseMachine(RuleBasedStateMachine):
    """One example: a workspace of its own, and rules in any order."""

    environment: Environment  # given by a subclass
    world: World
    operator_interferes: bool

    @initialize(
        sessions=st.integers(1, 2),
        in_flight_limit=st.sampled_from((200, 1)),
        max_attempts=st.sampled_from((5, 2, 1)),
        history=st.sampled_from((400, 12)),
        strategy=st.sampled_from(STRATEGIES),
        allow_interruption=st.sampled_from((True, True, False)),
        operator_interferes=st.booleans(),
    )
    def begin(
        self,
        sessions: int,
        in_flight_limit: int,
        max_attempts: int,
        history: int,
        strategy: str,
        allow_interruption: bool,
        operator_interferes: bool,
    ) -> None:
        self.operator_interferes = operator_interferes  # without the operator's interference, turns get further
        self.world = World(
            self.environment,
            sessions=sessions,
            in_flight_limit=in_flight_limit,
            max_attempts=max_attempts,
            history=history,
            strategy=strategy,
            allow_interruption=allow_interruption,
        )
        self.budget_checker = BudgetChecker(self.world)

    def run(self, work: Coroutine[Any, Any, Item]) -> Item:
        """Return the result of `work`, once everything that it started waits."""
        return self.environment.run(work)

    @staticmethod
    def pick(items: Sequence[Item], place: int) -> Item:
        """Return one of `items` by any number, also one beyond their count."""
        return items[place % len(items)]

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.world.remove_ended_workers()
        self.budget_checker.look()
        assert not self.world.wrong, self.world.wrong
        found = violations(self.world)
        assert not found, found
