import os
import signal
import subprocess
import sys

import psutil
import pytest

from cli.errors import SetupError
from cli.standalone.process import Command, http_ok, log_says
from cli.standalone.supervisor import Stopped, Supervisor
from tests.support.servers import ROOT, free_port, process_env, until
from worker.watchdog import EXIT_CODE

READY = log_says("ready")
SAYS_READY = "import time; print('ready', flush=True); time.sleep(60)"


def part(tmp_path, name, program, ready=READY, **options):
    return Command(
        name, [sys.executable, "-c", program], env=process_env(), cwd=tmp_path, log=tmp_path / f"{name}.log", ready=ready, **options
    )


@pytest.fixture
def lines():
    return []


@pytest.fixture
def supervisor(lines):
    found = Supervisor(lines.append)
    yield found
    found.stop()


def test_parts_are_ready_when_they_say_so_and_are_gone_after_stop(tmp_path, supervisor):
    parts = [part(tmp_path, name, SAYS_READY) for name in ("one", "two")]
    supervisor.start(*parts)
    pids = [found.pid for found in parts]
    supervisor.stop()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_readiness_over_http(tmp_path, supervisor):
    port = free_port()
    server = part(
        tmp_path, "web", f"import http.server as h; h.test(h.SimpleHTTPRequestHandler, port={port}, bind='127.0.0.1')", http_ok(port, "/")
    )
    supervisor.start(server)
    assert server.answers()


def test_a_part_that_does_not_start_is_named_with_the_end_of_its_log(tmp_path, supervisor):
    with pytest.raises(SetupError, match=r"broken did not start: it exited with 3\. (.|\n)*no such colour"):
        supervisor.start(part(tmp_path, "broken", "import sys; print('no such colour', flush=True); sys.exit(3)"))


def test_a_part_that_never_gets_ready_is_named(tmp_path, supervisor):
    with pytest.raises(SetupError, match="slow did not answer within"):
        supervisor.start(part(tmp_path, "slow", "import time; time.sleep(60)"), within_s=0.2)


def test_a_once_run_part_must_succeed(tmp_path, supervisor):
    supervisor.run_once(part(tmp_path, "good", "print(1)"))
    with pytest.raises(SetupError, match=r"bad exited with 1(.|\n)*ZeroDivisionError"):
        supervisor.run_once(part(tmp_path, "bad", "1/0"))


def test_what_died_is_started_again_and_that_is_said(tmp_path, lines):
    def say(line):
        lines.append(line)
        if "runs again" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    supervisor = Supervisor(say)
    found = part(tmp_path, "worker", SAYS_READY)
    with supervisor.signals():
        try:
            supervisor.start(found)
            first = found.pid
            os.kill(first, signal.SIGKILL)
            supervisor.watch()
            assert found.pid != first
        finally:
            supervisor.stop()
    assert lines[0].startswith("worker was killed by SIGKILL; starting it again in 0.5 s.")
    assert [line.split()[0] for line in lines] == ["worker", "worker", "Stopping."]


def test_one_that_ended_itself_is_started_again(tmp_path, lines):
    """As a worker's watchdog does: with an exit code of its own."""

    def say(line):
        lines.append(line)
        if "runs again" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    supervisor = Supervisor(say)
    first_time = "import pathlib, sys, time\nran = pathlib.Path('ran'); first = not ran.exists(); ran.touch(); print('ready', flush=True)\n"
    found = part(tmp_path, "worker", first_time + f"time.sleep(0.5 if first else 60); sys.exit({EXIT_CODE})")
    with supervisor.signals():
        try:
            supervisor.start(found)
            supervisor.watch()
            assert found.alive
        finally:
            supervisor.stop()
    assert lines[0].startswith(f"worker exited with {EXIT_CODE}; starting it again in 0.5 s.")


def test_a_stop_during_a_start_is_heeded(tmp_path, supervisor):
    with supervisor.signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped):
            supervisor.start(part(tmp_path, "slow", "import time; time.sleep(60)"))


def test_stages_stop_last_started_first(tmp_path, supervisor):
    program = (
        "import signal, sys, time, pathlib\nsignal.signal(signal.SIGTERM, lambda *_: (open('order', 'a').write(sys.argv[1]), sys.exit()))\n"
    )
    parts = {name: part(tmp_path, name, program + SAYS_READY) for name in "abc"}
    for name, found in parts.items():
        found.command = (*found.command, name)
    supervisor.start(parts["a"])
    supervisor.start_stages([parts["b"]], [parts["c"]])
    supervisor.stop()
    assert (tmp_path / "order").read_text() == "cba"


def test_a_part_deaf_to_its_stop_signal_is_killed(tmp_path, supervisor):
    deaf = part(
        tmp_path, "deaf", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SAYS_READY, stop_steps=((signal.SIGTERM, 0.2),)
    )
    supervisor.start(deaf)
    pid = deaf.pid
    supervisor.stop()
    assert not psutil.pid_exists(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_parts_end_with_a_supervisor_that_was_killed(tmp_path):
    program = f"""
import pathlib, sys, time
from tests.cli.standalone.test_supervisor import SAYS_READY, part
found = part(pathlib.Path({str(tmp_path)!r}), "orphan", SAYS_READY)
found.start()
print(found.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=process_env(), cwd=ROOT, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_a_big_log_is_turned_over_at_launch(tmp_path):
    found = part(tmp_path, "wordy", SAYS_READY)
    with found.log.open("wb") as log:
        log.truncate(11 * 1024 * 1024)
    with found:
        assert found.log.stat().st_size < 1000
    assert (tmp_path / "wordy.log.1").exists()
