"""Two crashes in one case: a fixed sample of all ordered pairs. `make crashpoints` runs all of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from tests.system.crashes.case import Outcome
from tests.system.crashes.crash_table import CRASHES

SEED, SIZE = 3, 12
PAIRS = random.Random(SEED).sample([" then ".join(pair) for pair in itertools.product(CRASHES, repeat=2)], SIZE)


@pytest.mark.parametrize("name", PAIRS)
def test_two_crashes(name: str, outcome: Callable[[str], Outcome]):
    found = outcome(name)

    assert found.wrong == []
    assert found.answered == 2
