"""Outcomes of cases that run concurrently, for tests that check one each."""

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
    """Return a case's outcome by its name. All selected cases of the module are started at once, in the tests' order."""
    selected = [item.callspec.params["name"] for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    names = list(dict.fromkeys(selected))
    cases = [tuple(CRASHES[part] for part in name.split(" then ")) for name in names]
    directory = Path(tmp_path_factory.mktemp("crashpoints"))
    with run_cases(databases, directory, cases, RUNNERS) as futures:
        by_name = dict(zip(names, futures, strict=True))
        yield lambda name: by_name[name].result()
