"""`turnline demo` as a user runs it: real servers, a real worker, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import urllib.request

import psutil
import pytest

from tests.support.servers import ROOT, process_env, until


@pytest.fixture
def demo(scratch):
    place = scratch / "demo"
    place.mkdir(mode=0o711, exist_ok=True)
    begun = []

    def start(**env):
        # A database of the user's, which the demo must not touch: it does not exist.
        env = {"DATABASE_URL": "postgresql://me@127.0.0.1:1/mine", "TMPDIR": str(place), "COLUMNS": "200", **env}
        command = [sys.executable, "-m", "cli.main", "demo"]
        process = subprocess.Popen(command, env=process_env(**env), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()
    ours = [found.pid for found in psutil.process_iter() if _reads_from(found, str(place))]
    assert ours == []
    assert list(place.iterdir()) == []


def _reads_from(process, place):
    try:
        return any(place in word for word in process.cmdline())
    except psutil.Error:
        return False


def test_the_demo_answers_with_the_tools_result_and_what_it_cost(demo):
    out, err = (process := demo()).communicate(timeout=90)
    assert process.returncode == 0, out + err
    lines = [line.split() for line in out.splitlines()]
    assert [line[1] for line in lines if line and line[0].isdigit()] == ["customer_message", "tool_call", "tool_result", "agent_message"]
    tokens = next(line for line in lines if line[:1] == ["tokens"])
    assert {"paid", "true,"} <= set(tokens)
    assert any(line[:1] == ["cost"] and line[1].startswith("$0.00") for line in lines)
    assert "/docs and Flower at http://127.0.0.1:" in out


def test_with_a_key_the_demo_talks_to_that_vendor(demo, tmp_path):
    with subprocess.Popen([sys.executable, "-m", "sandbox"], env=process_env(), cwd=ROOT, stdout=subprocess.PIPE, text=True) as vendor:
        assert vendor.stdout is not None
        try:
            url = vendor.stdout.readline().split()[-1]
            out, err = (process := demo(OPENAI_API_KEY="sk-test", OPENAI_BASE_URL=f"{url}/v1")).communicate(timeout=90)
            assert process.returncode == 0, out + err
            with urllib.request.urlopen(f"{url}/_sandbox/counts?brief=1") as counts:
                assert json.load(counts)["model"]["requests"] == 2
            out, err = (process := demo(OPENAI_API_KEY="sk-test", OPENAI_BASE_URL=f"{url}/nowhere")).communicate(timeout=90)
            assert process.returncode == 1
            assert "The turn ended without an answer" in err
            assert "Traceback" not in err.partition("The worker said last")[0]
        finally:
            vendor.terminate()


def test_ctrl_c_ends_the_demo_at_any_time(demo):
    process = demo()
    until(lambda: psutil.Process(process.pid).children(), 30)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
