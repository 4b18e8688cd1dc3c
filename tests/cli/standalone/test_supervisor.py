"""Supervisor and managed processes, with real child processes."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from cli.errors import SetupError
from cli.standalone.process import http_ok
from cli.standalone.supervisor import StopRequested, Supervisor
from tests.support.managed_processes import READY_PROGRAM, python_process
from tests.support.servers import ROOT, free_port, process_env, until
from worker.watchdog import EXIT_CODE

SLEEP_PROGRAM = "import time; time.sleep(60)"


@pytest.fixture
def lines():
    return []


@pytest.fixture
def supervisor(lines):
    started = Supervisor(lines.append)
    yield started
    started.stop()


@pytest.fixture
def stopping_after_restart(lines):
    """A supervisor that is asked to stop once it has reported a restart."""

    def report(line):
        lines.append(line)
        if "runs again" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    return Supervisor(report)


def test_processes_are_ready_after_start_and_gone_after_stop(tmp_path, supervisor):
    processes = [python_process(tmp_path, name, READY_PROGRAM) for name in ("one", "two")]
    supervisor.start(*processes)
    pids = [process.pid for process in processes]
    supervisor.stop()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_http_readiness(tmp_path, supervisor):
    port = free_port()
    program = f"import http.server as h; h.test(h.SimpleHTTPRequestHandler, port={port}, bind='127.0.0.1')"
    server = python_process(tmp_path, "web", program, ready=http_ok(port, "/"))
    supervisor.start(server)
    assert server.is_ready()


def test_failed_start_reports_name_and_end_of_log(tmp_path, supervisor):
    with pytest.raises(SetupError, match=r"broken did not start: it exited with 3\. (.|\n)*no such colour"):
        supervisor.start(python_process(tmp_path, "broken", "import sys; print('no such colour', flush=True); sys.exit(3)"))


def test_start_times_out(tmp_path, supervisor):
    with pytest.raises(SetupError, match="slow did not answer within"):
        supervisor.start(python_process(tmp_path, "slow", SLEEP_PROGRAM), timeout_s=0.2)


def test_run_once_requires_exit_code_0(tmp_path, supervisor):
    supervisor.run_once(python_process(tmp_path, "good", "print(1)"))
    with pytest.raises(SetupError, match=r"bad exited with 1(.|\n)*ZeroDivisionError"):
        supervisor.run_once(python_process(tmp_path, "bad", "1/0"))


def test_killed_process_is_restarted(tmp_path, lines, stopping_after_restart):
    worker = python_process(tmp_path, "worker", READY_PROGRAM)
    with stopping_after_restart.signals():
        try:
            stopping_after_restart.start(worker)
            first = worker.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            stopping_after_restart.keep_running()
            assert worker.pid != first
        finally:
            stopping_after_restart.stop()
    assert lines[0].startswith("worker was killed by SIGKILL; restarting it in 0.5 s.")
    assert [line.split()[0] for line in lines] == ["worker", "worker", "Stopping."]


def test_process_that_exits_is_restarted(tmp_path, lines, stopping_after_restart):
    """A worker's watchdog exits with a code of its own."""
    first_time = "import pathlib, sys, time\nran = pathlib.Path('ran'); first = not ran.exists(); ran.touch(); print('ready', flush=True)\n"
    worker = python_process(tmp_path, "worker", first_time + f"time.sleep(0.5 if first else 60); sys.exit({EXIT_CODE})")
    with stopping_after_restart.signals():
        try:
            stopping_after_restart.start(worker)
            stopping_after_restart.keep_running()
            assert worker.alive
        finally:
            stopping_after_restart.stop()
    assert lines[0].startswith(f"worker exited with {EXIT_CODE}; restarting it in 0.5 s.")


def test_signal_interrupts_start(tmp_path, supervisor):
    with supervisor.signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(StopRequested):
            supervisor.start(python_process(tmp_path, "slow", SLEEP_PROGRAM))


def test_last_started_group_stops_first(tmp_path, supervisor):
    program = (
        "import signal, sys, time, pathlib\nsignal.signal(signal.SIGTERM, lambda *_: (open('order', 'a').write(sys.argv[1]), sys.exit()))\n"
    )
    processes = {name: python_process(tmp_path, name, program + READY_PROGRAM) for name in "abc"}
    for name, process in processes.items():
        process.command = (*process.command, name)
    supervisor.start(processes["a"])
    supervisor.start_groups([processes["b"]], [processes["c"]])
    supervisor.stop()
    assert (tmp_path / "order").read_text() == "cba"


def test_process_that_ignores_its_stop_signal_is_killed(tmp_path, supervisor):
    program = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY_PROGRAM
    stubborn = python_process(tmp_path, "stubborn", program, stop_steps=((signal.SIGTERM, 0.2),))
    supervisor.start(stubborn)
    pid = stubborn.pid
    supervisor.stop()
    assert not psutil.pid_exists(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_processes_end_when_their_parent_is_killed(tmp_path):
    program = f"""
import pathlib, time
from tests.support.managed_processes import READY_PROGRAM, python_process
orphan = python_process(pathlib.Path({str(tmp_path)!r}), "orphan", READY_PROGRAM)
orphan.start()
print(orphan.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=process_env(), cwd=ROOT, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_large_log_is_rotated_at_launch(tmp_path):
    wordy = python_process(tmp_path, "wordy", READY_PROGRAM)
    with wordy.log.open("wb") as log:
        log.truncate(11 * 1024 * 1024)
    with wordy:
        assert wordy.log.stat().st_size < 1000
    assert (tmp_path / "wordy.log.1").exists()
