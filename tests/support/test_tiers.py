"""`make test-fast` runs the tests that need no server, and a test there that uses one fails."""

from __future__ import annotations

import subprocess
import sys

from tests.support.servers import ROOT


def test_make_test_fast_runs_the_directories_that_may_not_use_servers():
    (fast,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("FAST_TESTS :=")]
    (serverless,) = [line for line in (ROOT / "tests/conftest.py").read_text().splitlines() if line.startswith("SERVERLESS =")]

    assert serverless == "SERVERLESS = {" + ", ".join(f'"{one.removeprefix("tests/")}"' for one in fast.split()[2:]) + "}"


def test_a_fast_test_that_uses_a_server_fails():
    probe = ROOT / "tests" / "engine" / "test_probe_of_tiers.py"
    probe.write_text("def test_it(database_url):\n    pass\n")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(probe)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        probe.unlink()

    assert done.returncode == 1
    assert "tests/engine must run without servers, and this test uses postgres" in done.stdout
