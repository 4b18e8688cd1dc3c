"""The customer and a second device: messages with every strategy, with and without keys, new and repeated."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from engine.errors import Conflict
from store.conversations import intake
from store.conversations.intake import STRATEGIES, Accepted
from tests.system.machine.base_machine import INDEXES, OPEN, BaseMachine
from tests.system.machine.world import SentMessage


class Customers(BaseMachine):
    """Two devices of one customer. They share sessions and idempotency keys."""

    @rule(device=st.sampled_from(("phone", "laptop")), place=INDEXES, strategy=st.sampled_from((None, *STRATEGIES)), keyed=st.booleans())
    def send_message(self, device: str, place: int, strategy: str | None, keyed: bool) -> None:
        world, session_id = self.world, self.pick(self.world.session_ids, place)
        (before,) = world.rows(
            f"SELECT s.mode, count(t.id) AS open FROM sessions s LEFT JOIN turns t ON t.session_id = s.id AND t.status IN {OPEN}"
            " WHERE s.id = %(s)s GROUP BY s.id",
            s=session_id,
        )
        text = world.next("message")
        key = f"{device} {text}" if keyed else None
        try:
            accepted: Accepted | None = self.run(
                intake.accept(
                    world.environment.database,
                    world.workspace_id,
                    session_id,
                    text,
                    message_key=key,
                    strategy=strategy,
                    in_flight_limit=world.in_flight_limit,
                )
            )
        except Conflict:
            accepted = None
        if accepted is None:
            assert strategy in ("reject", "rollback", None), "a message was rejected although its strategy never rejects"
            assert before["open"], "a message was rejected although no turn was open"
            return
        assert not (strategy == "reject" and before["open"] and before["mode"] != "manual"), (
            "a message with the strategy reject was accepted although a turn was open"
        )
        assert (accepted.turn_id is None) == (before["mode"] == "manual")
        world.messages.append(SentMessage(session_id, accepted.offset, text, key, accepted.turn_id, accepted.event_id))
        if accepted.to_dispatch is not None:
            world.dispatch(accepted.to_dispatch)

    @precondition(lambda self: any(message.key for message in self.world.messages))
    @rule(which=INDEXES, same=st.booleans(), strategy=st.sampled_from((None, *STRATEGIES)))
    def send_again(self, which: int, same: bool, strategy: str | None) -> None:
        world = self.world
        first = self.pick([message for message in world.messages if message.key], which)
        text = first.text if same else world.next("message")
        try:
            again: Accepted | None = self.run(
                intake.accept(
                    world.environment.database, world.workspace_id, first.session_id, text, message_key=first.key, strategy=strategy
                )
            )
        except Conflict:
            again = None
        assert (again is not None) == same, "a key must be accepted again exactly when it comes with the same text"
        if again is not None:
            assert (again.repeated, again.event_id, again.offset, again.to_dispatch) == (True, first.event_id, first.offset, None)
