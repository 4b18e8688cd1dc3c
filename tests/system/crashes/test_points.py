"""A process is killed at each failpoint in turn, in the first of two turns; another finishes, and nothing is lost or done twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.system.crashes.case import Outcome
from tests.system.crashes.crash_table import CRASHES


@pytest.mark.parametrize("name", CRASHES)
def test_one_crash(name: str, outcome: Callable[[str], Outcome]):
    crash, found = CRASHES[name], outcome(name)

    assert found.wrong == []
    assert found.answered == 2
    assert found.repeated_requests == crash.repeated_requests
    assert found.refund_states == [crash.unsafe, "succeeded"]
    assert found.refunds == [found.refunds[0] if crash.refunds is None else crash.refunds, 1]
    assert found.attempts == [crash.attempts, 1]


@pytest.mark.parametrize("name", ["tool_call.committed agent changed"])
def test_agent_changed_between_two_attempts_applies_to_the_next_turn(name: str, outcome: Callable[[str], Outcome]):
    """A turn keeps the version of the agent that it began with; the next one begins with the new version."""
    assert outcome(name).agent_versions == [1, 2]


@pytest.mark.parametrize("name", ["tool_call.answered"])
def test_uncommitted_tool_answer_is_requested_again_under_its_key(name: str, outcome: Callable[[str], Outcome]):
    """The idempotent tool is called again with the same key, and its effect happens once."""
    assert outcome(name).lookups == [2, 1]
