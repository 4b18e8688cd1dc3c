"""`turnline demo` as a process: real servers, a real worker, and nothing left running afterwards."""

import json
import os
import signal
import subprocess
import sys
import urllib.request

import psutil
import pytest

from tests.support.cli import COMMAND
from tests.support.servers import ROOT, process_env, until


@pytest.fixture
def demo(scratch):
    directory = scratch / "demo"
    directory.mkdir(mode=0o711, exist_ok=True)
    started = []

    def start(**env):
        # The user's database, which the demo must not use. It does not exist.
        env = {"DATABASE_URL": "postgresql://me@127.0.0.1:1/mine", "TMPDIR": str(directory), "COLUMNS": "200", **env}
        process = subprocess.Popen(
            [*COMMAND, "demo"], env=process_env(**env), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    assert [found.pid for found in psutil.process_iter() if _names_directory(found, str(directory))] == []
    assert list(directory.iterdir()) == []


def _names_directory(process, directory):
    try:
        return any(directory in word for word in process.cmdline())
    except psutil.Error:
        return False


def test_demo_prints_log_answer_and_cost(demo):
    out, err = (process := demo()).communicate(timeout=90)
    assert process.returncode == 0, out + err
    lines = [line.split() for line in out.splitlines()]
    assert [line[1] for line in lines if line and line[0].isdigit()] == ["customer_message", "tool_call", "tool_result", "agent_message"]
    tokens = next(line for line in lines if line[:1] == ["tokens"])
    assert {"paid", "true,"} <= set(tokens)
    assert any(line[:1] == ["cost"] and line[1].startswith("$0.00") for line in lines)
    assert "/docs and Flower at http://127.0.0.1:" in out


def test_demo_with_a_key_uses_that_provider(demo):
    with subprocess.Popen([sys.executable, "-m", "sandbox"], env=process_env(), cwd=ROOT, stdout=subprocess.PIPE, text=True) as sandbox:
        assert sandbox.stdout is not None
        try:
            url = sandbox.stdout.readline().split()[-1]
            out, err = (process := demo(OPENAI_API_KEY="sk-test", OPENAI_BASE_URL=f"{url}/v1")).communicate(timeout=90)
            assert process.returncode == 0, out + err
            with urllib.request.urlopen(f"{url}/_sandbox/counts?brief=1") as counts:
                assert json.load(counts)["model"]["requests"] == 2
            out, err = (process := demo(OPENAI_API_KEY="sk-test", OPENAI_BASE_URL=f"{url}/nowhere")).communicate(timeout=90)
            assert process.returncode == 1
            assert "The turn ended without an answer" in err
            assert "Traceback" not in err.partition("The end of the log of worker")[0]
        finally:
            sandbox.terminate()


def test_ctrl_c_ends_the_demo_during_its_start(demo):
    process = demo()
    until(lambda: psutil.Process(process.pid).children(), 30)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
