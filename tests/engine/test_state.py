"""Folding a log into a turn's state: every order of the log gives a history that every provider accepts."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from engine.enums import EventKind, Role, Source
from engine.events import Event
from engine.turn.prompt import model_request
from engine.turn.state import CONVERSATION_BEGINS, CUSTOMER_WAITS, TurnState
from tests.support.fakes import OTHER_TURN, TURN, context, customer
from tests.support.valid_prompt import provider_valid


def agent(text: str, offset: int, read_through: int, turn_id: UUID = OTHER_TURN, source: Source = Source.AI_AGENT) -> Event:
    return Event(EventKind.AGENT_MESSAGE, source, {"text": text}, {"read_through": read_through}, turn_id, offset)


def shown(state: TurnState) -> list[tuple[str, str]]:
    return [(str(message.role), message.text) for message in state.prompt()]


def test_queued_message_follows_the_reply_to_the_previous_one():
    log = [customer("one", 0, OTHER_TURN), customer("two", 1), agent("reply to one", 2, read_through=0)]

    assert shown(TurnState(TURN).then(log)) == [("user", "one"), ("assistant", "reply to one"), ("user", "two")]


def test_a_person_who_answers_has_read_everything_before():
    log = [customer("one", 0), Event(EventKind.AGENT_MESSAGE, Source.HUMAN_AGENT, {"text": "I am here"}, {}, None, 1), customer("two", 2)]

    state = TurnState(TURN).then(log)

    assert shown(state) == [("user", "one"), ("assistant", "I am here"), ("user", "two")]
    assert state.reply is None


def test_the_message_of_a_failed_turn_stays_in_the_history():
    log = [customer("one", 0, OTHER_TURN), Event(EventKind.STATUS_UPDATE, Source.SYSTEM, {"status": "failed"}, {}, OTHER_TURN, 1),
           customer("two", 2)]  # fmt: skip

    assert shown(TurnState(TURN).then(log)) == [("user", "one"), ("user", "two")]


def test_a_message_read_twice_counts_once():
    state = TurnState(TURN).then([customer("one", 0)])

    assert state.then([customer("one", 0)]) == state


def test_history_starting_inside_a_step_shows_no_result_without_its_call():
    result = Event(EventKind.TOOL_RESULT, Source.SYSTEM, {"tool_call_id": "c0", "status": "succeeded", "result": 1}, {}, OTHER_TURN, 7)

    assert shown(TurnState(TURN).then([result, customer("next", 8)])) == [("user", "next")]


def test_prompt_always_starts_with_a_user_message():
    greeting = Event(EventKind.AGENT_MESSAGE, Source.HUMAN_AGENT, {"text": "Can I help?"}, {}, None, 0)

    state = TurnState(TURN).then([greeting, customer("yes", 1)])

    assert shown(state) == [("user", CONVERSATION_BEGINS), ("assistant", "Can I help?"), ("user", "yes")]


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """A session's log as turns write it: steps of one to three calls, messages at any point, cut off at any history limit."""
    events: list[Event] = []
    last_read = -1

    def add(kind: EventKind, source: Source, content: dict[str, object], metadata: dict[str, object], turn_id: UUID) -> None:
        events.append(Event(kind, source, content, metadata, turn_id, len(events)))

    def arrive(turn_id: UUID) -> None:
        for _ in range(draw(st.integers(0, 2))):
            add(EventKind.CUSTOMER_MESSAGE, Source.CUSTOMER, {"text": f"message {len(events)}"}, {}, turn_id)

    for number in range(draw(st.integers(1, 4))):
        turn_id = UUID(int=100 + number)
        add(EventKind.CUSTOMER_MESSAGE, Source.CUSTOMER, {"text": f"opens {number}"}, {}, turn_id)
        for step in range(draw(st.integers(0, 3))):
            last_read = max(event.offset for event in events if event.kind is EventKind.CUSTOMER_MESSAGE)
            arrive(turn_id)
            ids = [f"{number}.{step}.{place}" for place in range(draw(st.integers(1, 3)))]
            for position, call_id in enumerate(ids):
                content: dict[str, object] = {"tool_call_id": call_id, "tool_name": "t", "arguments": {}}
                add(EventKind.TOOL_CALL, Source.AI_AGENT, content, {"step": step, "position": position, "read_through": last_read}, turn_id)
            arrive(turn_id)
            if draw(st.booleans()) or step < 2:
                for call_id in ids:
                    add(EventKind.TOOL_RESULT, Source.SYSTEM, {"tool_call_id": call_id, "status": "succeeded"}, {}, turn_id)
        if draw(st.booleans()):
            add(EventKind.AGENT_MESSAGE, Source.AI_AGENT, {"text": f"reply {number}"}, {"read_through": last_read}, turn_id)
    return events[draw(st.integers(0, len(events))) :]


@given(logs())
def test_prompt_is_valid_for_any_log_and_history_limit(log: list[Event]):
    state = TurnState(TURN).then(log)

    assert not state.prompt() or provider_valid(model_request(state, context())) == []
    written = [event.content["text"] for event in log if event.kind is EventKind.CUSTOMER_MESSAGE]
    shown_to_model = [
        message.text
        for message in state.prompt()
        if message.role is Role.USER and message.text not in (CONVERSATION_BEGINS, CUSTOMER_WAITS)
    ]
    assert sorted(shown_to_model) == sorted(written), "every message within the history limit is shown once"


@given(logs(), st.integers(0, 30))
def test_folding_in_two_parts_equals_folding_at_once(log: list[Event], cut: int):
    assert TurnState(TURN).then(log[:cut]).then(log[cut:]) == TurnState(TURN).then(log)
