"""`python -m sandbox` as a process."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from sandbox.faults import FAULTS
from sandbox.markers import MARKERS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("signal", ["terminate", "kill"])
def test_it_prints_its_url_and_stops_on_signal(signal):
    command = [sys.executable, "-m", "sandbox", "--port", "0", "--latency-ms", "5"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line, _, url = process.stdout.readline().strip().rpartition(" ")
        assert line == "sandbox listening on"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url + "/", timeout=10) as reply:
            page = reply.read().decode()
        getattr(process, signal)()
        assert process.wait(timeout=10) == (0 if signal == "terminate" else -9)
    assert all(marker in page for marker in MARKERS)
    assert all(f"  {fault} " in page for fault in FAULTS)


def test_help_option_lists_every_fault():
    shown = subprocess.run([sys.executable, "-m", "sandbox", "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"  {name} " in shown for name in FAULTS)


def test_it_imports_no_other_package():
    other_packages = ("api", "cli", "engine", "integrations", "models", "observability", "realtime", "settings", "store", "tasks", "worker")
    code = f"import sandbox.__main__, sys; print([name for name in sys.modules if name.split('.')[0] in {other_packages}])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"
