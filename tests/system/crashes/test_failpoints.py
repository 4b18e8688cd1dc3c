"""Failpoints: a normal start refuses TURNLINE_CRASH_AT, a test's start accepts it, and its action is performed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from failpoints import CONSENT, CONSENTED, FAILPOINTS, NotArmed, armed, log_line
from tests.support.servers import ROOT, free_port, process_env, until

CONSENTING = {CONSENT: CONSENTED}
ENTRY_POINTS = {
    "turnline worker": ("-m", "cli.main", "worker"),
    "turnline doctor": ("-m", "cli.main", "doctor"),
    "turnline up": ("-m", "cli.main", "up"),
    "celery worker": ("-m", "celery", "-A", "tasks", "worker"),
    "celery beat": ("-m", "celery", "-A", "tasks", "beat"),
    "uvicorn": ("-m", "uvicorn", "api.app:app", "--port", "0"),
}


def started(tmp_path: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    whole = process_env(
        DATABASE_URL=f"postgresql://nobody@127.0.0.1:{free_port()}/nothing",
        CELERY_BROKER_URL=f"redis://127.0.0.1:{free_port()}",
        TURNLINE_HOME=str(tmp_path / "home"),
        **env,
    )
    return subprocess.run([sys.executable, *argv], env=whole, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_normal_start_refuses_failpoints(entry_point: str, tmp_path: Path):
    done = started(tmp_path, *ENTRY_POINTS[entry_point], TURNLINE_CRASH_AT="model_call.before_send")
    assert done.returncode == 1
    assert "TURNLINE_CRASH_AT is set: it kills this process on purpose" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("entry_point", ["turnline doctor", "celery worker", "uvicorn"])
def test_unknown_failpoint_is_refused(entry_point: str, tmp_path: Path):
    done = started(tmp_path, *ENTRY_POINTS[entry_point], TURNLINE_CRASH_AT="C99", **CONSENTING)
    assert done.returncode == 1
    assert "TURNLINE_CRASH_AT names an unknown failpoint: 'C99'. Known failpoints: intake.before_commit" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_consent_must_match_exactly():
    for consent in ("", "1", "true", "yes"):
        with pytest.raises(NotArmed, match="for tests only"):
            armed({"TURNLINE_CRASH_AT": "model_call.before_send", CONSENT: consent})
    assert armed(CONSENTING) is None
    assert armed({"TURNLINE_CRASH_AT": "", **CONSENTING}) is None


@pytest.mark.parametrize(
    "setting",
    [
        "C7",
        "Model_call.before_send",
        "model_call.before_send:0",
        "model_call.before_send:explode",
        "model_call.before_send:2:stop:now",
        "model_call.before_send:-1",
        "C0",
    ],
)
def test_invalid_failpoint_settings_are_refused(setting: str):
    with pytest.raises(NotArmed):
        armed({"TURNLINE_CRASH_AT": setting, **CONSENTING})


@pytest.mark.parametrize(
    ("setting", "nth", "action"),
    [
        ("model_call.before_send", 1, "kill"),
        ("model_call.before_send:2", 2, "kill"),
        ("model_call.before_send:stop", 1, "stop"),
        ("model_call.before_send:3:say", 3, "say"),
    ],
)
def test_valid_failpoint_settings(setting: str, nth: int, action: str):
    found = armed({"TURNLINE_CRASH_AT": setting, **CONSENTING})
    assert found is not None
    assert (found.name, found.nth, found.action) == ("model_call.before_send", nth, action)


def test_failpoints_in_the_code_equal_the_list():
    folders = ("api", "integrations", "realtime", "store", "tasks", "worker")
    source = "".join(file.read_text() for folder in folders for file in (ROOT / folder).rglob("*.py"))
    assert set(re.findall(r'failpoint\("([a-z_.]+)"\)', source)) == set(FAILPOINTS)


PROGRAM = """
import time
from failpoints import failpoint
for n in range(3):
    failpoint("model_call.before_send")
    print(n, flush=True)
time.sleep(30)
"""


def armed_process(setting: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=process_env(TURNLINE_CRASH_AT=setting, **CONSENTING),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_process_logs_its_failpoint_and_is_killed_there():
    out, err = (process := armed_process("model_call.before_send:2")).communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL
    assert err.splitlines() == [log_line("model_call.before_send", 2, "kill")]
    assert out == "0\n"


def test_process_with_action_say_logs_and_continues():
    process = armed_process("model_call.before_send:2:say")
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert [process.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
        assert process.stderr.readline() == log_line("model_call.before_send", 2, "say") + "\n"
    finally:
        process.kill()
        process.communicate()


def test_process_with_action_stop_continues_on_sigcont():
    process = armed_process("model_call.before_send:2:stop")
    try:
        until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
    finally:
        process.kill()
        process.communicate()


def test_failpoints_need_the_second_variable():
    """A user's own program that imports the code without starting one of our processes is not killed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("time.sleep(30)", "")],
        env=process_env(TURNLINE_CRASH_AT="model_call.before_send"), capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n1\n2\n", "")
