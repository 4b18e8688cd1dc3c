"""`make test-fast` runs the tests that need no server, and a test there that uses one fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.servers import ROOT


@pytest.fixture
def root_conftest(request: pytest.FixtureRequest) -> Any:
    """Return the module tests/conftest.py."""
    path = str(ROOT / "tests" / "conftest.py")
    return next(one for one in request.config.pluginmanager.get_plugins() if getattr(one, "__file__", None) == path)


def test_make_test_fast_runs_the_directories_that_may_not_use_servers(root_conftest: Any):
    (line,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("FAST_TESTS :=")]

    assert {path.removeprefix("tests/") for path in line.split()[2:]} == root_conftest.SERVERLESS


@pytest.mark.parametrize("directory", ["engine", "integrations", "sandbox", "support"])
def test_a_fast_test_that_uses_a_server_fails(root_conftest: Any, directory: str):
    item = SimpleNamespace(path=ROOT / "tests" / directory / "test_x.py", fixturenames=["database", "database_url", "postgres"])

    with pytest.raises(pytest.fail.Exception, match=f"tests/{directory} must run without servers, and this test uses postgres"):
        root_conftest.pytest_runtest_setup(item)


def test_a_test_of_another_directory_may_use_a_server(root_conftest: Any):
    root_conftest.pytest_runtest_setup(SimpleNamespace(path=ROOT / "tests" / "store" / "test_x.py", fixturenames=["postgres"]))
