"""Outcomes of cases that run several at a time, for tests that look at one each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.servers import Databases
from tests.system.crashes.case import Outcome
from tests.system.crashes.crash_table import CRASHES
from tests.system.crashes.runners import run_cases

RUNNERS = 3


Outcomes = Callable[[str], Outcome]


@pytest.fixture(scope="module")
def outcome(request: pytest.FixtureRequest, databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """What a case came to, by its name; all of the module's cases that were asked for are begun at once, in the tests' order."""
    wanted = [item.callspec.params["name"] for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    names = list(dict.fromkeys(wanted))
    cases = [tuple(CRASHES[part] for part in name.split(" then ")) for name in names]
    directory = Path(tmp_path_factory.mktemp("crashpoints"))
    with run_cases(databases, directory, cases, RUNNERS) as futures:
        by_name = dict(zip(names, futures, strict=True))
        yield lambda name: by_name[name].result()
