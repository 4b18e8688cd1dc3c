"""One beat, three beats, and a pause without beat, with beat's own schedule file and with redbeat."""

from __future__ import annotations

import json
import shelve
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from store.conversations import intake
from store.database import Database
from tests.support.factories import tenant
from tests.support.invariants import violations
from tests.support.servers import EmbeddedValkey, until
from tests.support.stack import Process, Stack, running

ACQUIRED = "beat: Acquired lock"


class Scheduled(Stack):
    """A stack on its own broker. No worker consumes the maintenance queue, so the messages sent to it stay."""

    @property
    def broker(self) -> Any:
        return redis.Redis.from_url(self.broker_url, decode_responses=True)

    def sent(self, task: str) -> list[float]:
        """Return the time of sending of each message of `task`, oldest first, in seconds since the epoch."""
        with self.broker as broker:
            headers = [json.loads(item)["headers"] for item in reversed(broker.lrange("maintenance", 0, -1))]
        return [one["sent_at"] for one in headers if one["task"] == task]

    def beat_at(self, schedule: Path) -> Process:
        return self.start("-m", "celery", "-A", "tasks", "beat", "-s", str(schedule), "--pidfile=", "-l", "INFO")


@pytest.fixture
def stack(database_url: str, tmp_path: Path) -> Iterator[Scheduled]:
    with EmbeddedValkey(None) as broker, running(Scheduled(database_url, broker.url, tmp_path)) as made:
        made.env["TURNLINE_SWEEP_EVERY_S"] = "1"
        yield cast(Scheduled, made)


@pytest.fixture
def redbeat(stack: Scheduled) -> Scheduled:
    stack.env["TURNLINE_SCHEDULER"] = "redbeat"
    return stack


def holder_of(beats: list[Process]) -> Process | None:
    """Return the running beat that acquired the lock last."""
    holders = [beat for beat in beats if beat.popen.poll() is None and ACQUIRED in beat.log.read_text()]
    return holders[-1] if holders else None


def test_one_of_three_redbeats_is_active_and_another_takes_over(redbeat: Scheduled):
    beats = [redbeat.beat() for _ in range(3)]
    until(lambda: len(redbeat.sent("turns.sweep")) >= 5, 30)
    first = holder_of(beats)
    assert first is not None
    assert sum(ACQUIRED in beat.log.read_text() for beat in beats) == 1
    times = redbeat.sent("turns.sweep")
    assert all(later - earlier > 0.5 for earlier, later in pairwise(times)), "more than one beat sent the same tick"

    first.kill()
    last = max(redbeat.sent("turns.sweep"))
    others = [beat for beat in beats if beat is not first]
    until(lambda: max(redbeat.sent("turns.sweep")) > last, 45)

    gap_s = next(later for later in redbeat.sent("turns.sweep") if later > last) - last
    assert gap_s < 30, "the takeover of the lock took too long"
    assert sum(ACQUIRED in beat.log.read_text() for beat in others) == 1
    taken_over = holder_of(others)
    assert taken_over is not None
    assert taken_over.stop() == 0
    (waiting,) = (beat for beat in others if beat is not taken_over)
    until(lambda: waiting.logged(ACQUIRED), 20)  # a beat that shuts down normally releases the lock at once
    assert not any("Traceback" in beat.log.read_text() for beat in beats)


async def test_three_beats_with_separate_files_run_each_turn_once(stack: Scheduled, database_url: str):
    """Each beat sends every job; the rows in the database keep work from being done twice."""
    stack.worker()
    beats = [stack.beat() for _ in range(3)]
    database = Database(database_url, pool_size=4)
    await database.open()
    made = await tenant(database, sessions=20)
    for session_id in made.session_ids:  # not dispatched: only the sweep finds them
        await intake.accept(database, made.workspace_id, session_id, "Is order 41 paid?")
    await database.close()

    stack.drained(60)

    assert stack.rows("SELECT status, attempts FROM turns WHERE workspace_id = %s", made.workspace_id) == [("done", 1)] * 20
    assert stack.one("SELECT count(*) FROM job_runs WHERE job = 'turns.sweep' AND error IS NOT NULL") == 0
    assert all(beat.popen.poll() is None for beat in beats)
    assert violations(database_url) == {}


def test_beat_sends_overdue_jobs_at_once(stack: Scheduled):
    schedule = stack.directory / "schedule"
    beat = stack.beat_at(schedule)
    until(lambda: stack.sent("turns.sweep"), 20)
    assert beat.stop() == 0
    assert stack.sent("usage.audit") == []
    with shelve.open(str(schedule)) as stored:
        entries = stored["entries"]
        for entry in entries.values():
            entry.last_run_at -= timedelta(hours=2)
        stored["entries"] = entries
    with stack.broker as broker:
        broker.flushall()

    stack.beat_at(schedule)

    until(lambda: stack.sent("usage.audit") and stack.sent("turns.sweep"), 20)
    assert len(stack.sent("usage.audit")) == 1, "the missed runs of an hourly job are caught up with one run"


def test_redbeat_catches_up_and_drops_removed_schedules(redbeat: Scheduled):
    beat = redbeat.beat()
    until(lambda: redbeat.sent("turns.sweep"), 20)
    assert beat.stop() == 0
    sent = len(redbeat.sent("usage.audit"))
    with redbeat.broker as broker:
        key = "turnline:beat:audit"
        meta = json.loads(broker.hget(key, "meta"))
        then = datetime.now(UTC) - timedelta(hours=2)
        meta["last_run_at"] = {"__type__": "datetime", "year": then.year, "month": then.month, "day": then.day, "hour": then.hour,
                               "minute": then.minute, "second": then.second, "microsecond": 0, "timezone": "UTC"}  # fmt: skip
        broker.hset(key, "meta", json.dumps(meta))
        broker.zadd("turnline:beat::schedule", {key: then.timestamp()})
        broker.hset("turnline:beat:gone", "definition", broker.hget(key, "definition"))
        broker.zadd("turnline:beat::schedule", {"turnline:beat:gone": then.timestamp()})
        broker.sadd("turnline:beat::statics", "gone")

    redbeat.beat()

    until(lambda: len(redbeat.sent("usage.audit")) == sent + 1, 20)
    with redbeat.broker as broker:
        assert not broker.exists("turnline:beat:gone")


def test_redbeat_without_redis_fails_with_a_reason(stack: Scheduled):
    stack.env |= {"TURNLINE_SCHEDULER": "redbeat", "CELERY_BROKER_URL": "amqp://127.0.0.1:1//", "REDIS_URL": ""}
    process = stack.start("-m", "cli.main", "beat")

    assert process.popen.wait(30) != 0
    assert process.log.read_text() == "Error: TURNLINE_SCHEDULER is redbeat, which needs Redis or Valkey: set REDIS_URL.\n"
