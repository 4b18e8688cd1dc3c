"""`turnline top` as a process, on a running stack and without a broker or a database."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import Any

from store.conversations import intake
from store.database import Database
from tasks.dispatcher import Dispatcher
from tests.support.factories import tenant
from tests.support.servers import ROOT, free_port, process_env, until
from tests.support.stack import Stack

COMMAND = [sys.executable, "-m", "cli.main", "top"]


def top(stack: Stack, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return stack.turnline("top", *arguments, **({"TURNLINE_HOME": str(stack.directory / "home"), "COLUMNS": "160"} | env))


def top_json(stack: Stack, **env: str) -> dict[str, Any]:
    done = top(stack, "--json", **env)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def test_top_shows_turns_queues_workers_tools_and_jobs(stack: Stack, database: Database, dispatcher: Dispatcher):
    stack.env |= {"TURNLINE_WATCHDOG_S": "3", "TURNLINE_METRICS_PORT": "0"}
    worker = stack.worker()
    stack.beat()
    tool = {"name": "orders", "integration": {"configuration": {"url": "http://127.0.0.1:1/"}, "health_status": "degraded"}}
    made = await tenant(database, sessions=3, tools=(tool,))
    for session_id in made.session_ids[:2]:
        accepted = await intake.accept(database, made.workspace_id, session_id, "top-canary")
        assert accepted.turn_id is not None
        dispatcher.dispatch(accepted.turn_id)
    stack.drained()
    await intake.accept(database, made.workspace_id, made.session_ids[2], "top-canary")
    worker.stop()
    stack.worker(queues="maintenance")
    until(lambda: stack.one("SELECT count(*) FROM workers") > 0 and stack.one("SELECT count(*) FROM job_runs") > 0, 30)

    found = top_json(stack)
    once = top(stack, "--once").stdout

    assert found["standing"]["turns"]["queued"]["count"] == 1
    assert found["recent"]["ended"] == {"done": 2}
    assert found["recent"]["turns_per_second"]["done"] == 2 / 60
    assert found["recent"]["usd_per_hour"] > 0
    assert found["standing"]["integrations"]["degraded"] == 1
    assert found["standing"]["jobs"]["turns.sweep"]["succeeded_at"] > 0
    assert found["broker"]["queues"]["turns"]["messages"] >= 0
    assert [pool["max-concurrency"] for pool in found["broker"]["pools"].values()] == [200]
    for words in ("queued", "done a second", "degraded", "turns.sweep", "@test", "LOOP LAG"):
        assert words in once
    assert "top-canary" not in once + json.dumps(found)


def test_top_without_a_broker_shows_what_the_database_knows(stack: Stack):
    unreachable = f"redis://127.0.0.1:{free_port()}"

    found = top_json(stack, CELERY_BROKER_URL=unreachable)

    assert found["broker"]["fault"].startswith("the broker does not answer")
    assert found["standing"]["turns"]["queued"]["count"] >= 0
    assert "the broker does not answer" in top(stack, "--once", CELERY_BROKER_URL=unreachable).stdout


def test_top_without_a_database_ends_with_a_reason(stack: Stack):
    done = top(stack, "--once", DATABASE_URL="postgresql://me:hunter2@127.0.0.1:1/x")

    assert done.returncode == 1
    assert "The database 127.0.0.1:1/x does not answer" in done.stderr
    assert "hunter2" not in done.stderr


def test_top_in_a_terminal_runs_until_ctrl_c(stack: Stack):
    master, terminal = pty.openpty()
    env = process_env() | stack.env | {"TERM": "xterm", "COLUMNS": "160", "LINES": "50", "TURNLINE_HOME": str(stack.directory / "home")}
    process = subprocess.Popen([*COMMAND, "--every", "0.5"], env=env, cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    seen = b""
    try:
        while seen.count(b"turnline top") < 3:
            seen += os.read(master, 65536)
        process.send_signal(2)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert b"QUEUES" in seen
    assert b"Traceback" not in seen
