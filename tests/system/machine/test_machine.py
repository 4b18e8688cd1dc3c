"""Random interleavings of all actors on a session. `python -m benchmarks.interleavings` runs thousands of them."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.system.machine.environment import Environment
from tests.system.machine.machine import Machine


@pytest.mark.timeout(900)
def test_every_message_is_accounted_for_in_any_interleaving(database_url: str):
    examples = int(os.environ.get("TURNLINE_TEST_INTERLEAVINGS", "60"))
    with Environment(database_url) as environment:

        class Here(Machine):
            pass

        Here.environment = environment
        run_state_machine_as_test(
            Here,
            settings=settings(
                max_examples=examples,
                stateful_step_count=40,
                deadline=None,
                derandomize=True,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
