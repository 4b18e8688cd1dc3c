"""What all actors of the state machine share: the house, and what is checked after each of their moves."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from store.conversations.intake import STRATEGIES
from tests.system.machine.environment import Stage
from tests.system.machine.invariants import Purse, violations
from tests.system.machine.world import House

Thing = TypeVar("Thing")
OPEN = "('queued', 'running', 'waiting')"
PLACES = st.integers(0, 7)


class Play(RuleBasedStateMachine):
    """One example: a workspace of its own, and any order of moves."""

    stage: Stage  # given by a subclass
    house: House
    meddles: bool

    @initialize(
        sessions=st.integers(1, 2),
        window=st.sampled_from((200, 1)),
        max_attempts=st.sampled_from((5, 2, 1)),
        history=st.sampled_from((400, 12)),
        strategy=st.sampled_from(STRATEGIES),
        allow_interruption=st.sampled_from((True, True, False)),
        meddles=st.booleans(),
    )
    def begin(
        self, sessions: int, window: int, max_attempts: int, history: int, strategy: str, allow_interruption: bool, meddles: bool
    ) -> None:
        self.meddles = meddles  # where the operator does not, turns get further
        self.house = House(
            self.stage,
            sessions=sessions,
            window=window,
            max_attempts=max_attempts,
            history=history,
            strategy=strategy,
            allow_interruption=allow_interruption,
        )
        self.purse = Purse(self.house)

    def run(self, work: Coroutine[Any, Any, Thing]) -> Thing:
        """What `work` returns, and everything it set off has come to a wait."""
        return self.stage.run(work)

    @staticmethod
    def pick(things: Sequence[Thing], place: int) -> Thing:
        """One of `things`, by a number that need not know how many there are."""
        return things[place % len(things)]

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.house.tidy()
        self.purse.look()
        assert not self.house.wrong, self.house.wrong
        found = violations(self.house)
        assert not found, found
