"""Faults of the messages in the queue and of the processes that send them."""

from __future__ import annotations

import pickle
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis
from kombu.connection import Connection

from tasks.dispatcher import publish
from tests.support.servers import until
from tests.system.faults.fault import Fault
from tests.system.faults.rig import READY_S, Rig

TIMES = 5
MEGABYTE = 1024 * 1024
WORDS = "text of a customer"


class DispatchedFiveTimes(Fault):
    """For two seconds, every turn that is opened is dispatched five more times."""

    name = "dispatched five times"
    duration_s = 0.0
    extra_model_calls = False

    def __init__(self) -> None:
        self.dispatched = 0
        self.since = datetime.now(UTC)

    def before(self, rig: Rig) -> None:
        self.since = rig.stack.one("SELECT now()")

    def inject(self, rig: Rig) -> None:
        known: set[Any] = set()
        for _ in range(10):
            opened = {turn_id for (turn_id,) in rig.stack.rows("SELECT id FROM turns WHERE opened_at >= %s", self.since)}
            dispatches = [(turn_id, 100 + number) for number in range(TIMES) for turn_id in opened - known]
            publish(rig.queues.app, dispatches)
            self.dispatched += len(dispatches)
            known |= opened
            time.sleep(0.2)

    def evidence(self, rig: Rig) -> dict[str, int]:
        return {"extra dispatch messages": self.dispatched}


class MalformedMessages(Fault):
    """The `turns` queue contains messages that our producers would not send."""

    name = "malformed messages"
    duration_s = 0.0
    extra_model_calls = False

    def __init__(self) -> None:
        self.sent = 0
        self.logs: dict[Path, int] = {}

    def before(self, rig: Rig) -> None:
        self.logs = rig.bookmarks()

    def inject(self, rig: Rig) -> None:
        task = {"lang": "py", "task": "turns.advance", "id": "garbage"}
        with rig.queues.app.connection_for_write() as connection:
            for body, content_type, encoding, headers in (
                (b'[[], {"text": "%s' % WORDS.encode(), "application/json", "utf-8", task),
                (b"[[], {}, ", "application/json", "utf-8", {}),
                (b"\xff\xfe", "application/json", "utf-8", task),
                (b"42", "application/json", "utf-8", task),
                (b'["args"]', "application/json", "utf-8", task),
                (b"[[], {}, {}]", "application/json", "utf-8", {"task": "turns.advance"}),
                (b'{"task": "turns.advance", "args": 1, "kwargs": 2}', "application/json", "utf-8", {}),
                (pickle.dumps(([], {"text": WORDS}, {})), "application/x-python-serialize", "binary", task),
                (b'[[], {"text": "%s"}, {}]' % WORDS.encode(), "application/json", "utf-8", task | {"task": "no.such.task"}),
                (b"[[], {}, {}]", "application/json", "utf-8", task),
                (b'[["not-a-turn-id"], {}, {}]', "application/json", "utf-8", task),
                (b'[["%s"], {}, {}]' % (b"x" * MEGABYTE), "application/json", "utf-8", task),
            ):
                connection.Producer().publish(
                    body, exchange="turns", routing_key="turns", content_type=content_type, content_encoding=encoding, headers=headers
                )
                self.sent += 1
            for raw in (b"\xff\x00\x01 no envelope", b"words", b"42", b"[]", b"{}", b'{"properties": {}}', b"x" * MEGABYTE):
                self._put_raw(rig, connection, raw)
                self.sent += 1

    @staticmethod
    def _put_raw(rig: Rig, connection: Connection, raw: bytes) -> None:
        if rig.kind == "valkey":
            with redis.Redis.from_url(rig.broker.url) as client:
                client.lpush("turns", raw)
        else:
            channel = connection.default_channel
            channel.basic_publish(channel.prepare_message(raw), exchange="turns", routing_key="turns")

    def evidence(self, rig: Rig) -> dict[str, int]:
        rejected = rig.count_in_logs("Rejecting a malformed or unknown message", self.logs)
        handled = rejected + rig.count_in_logs("Dropping a queue item that is not a message", self.logs)
        return {"malformed messages sent": self.sent, "rejected by the workers": handled}

    def wrong(self, rig: Rig) -> list[str]:
        return ["the logs quote a malformed message"] if rig.count_in_logs(WORDS, self.logs) else []


class ThreeBeats(Fault):
    """Three beats run at the same time."""

    name = "three beats"
    duration_s = 1.0
    extra_model_calls = False

    def __init__(self) -> None:
        self.beats = 0

    def before(self, rig: Rig) -> None:
        for number in (2, 3):
            rig.supervise(f"beat {number}", rig.stack.beat)

    def inject(self, rig: Rig) -> None:
        beats = [one.process for one in rig.processes if one.name.startswith("beat")]
        sizes = [beat.log.stat().st_size for beat in beats]
        until(
            lambda: all(b"Sending due task sweep-turns" in beat.log.read_bytes()[size:] for beat, size in zip(beats, sizes, strict=True)),
            READY_S,
        )
        self.beats = len(beats) - 1

    def after(self, rig: Rig) -> None:
        for number in (2, 3):
            rig.remove(rig.named(f"beat {number}"))

    def evidence(self, rig: Rig) -> dict[str, int]:
        return {"extra beats, all sending": self.beats}


class NoBeat(Fault):
    """No beat runs. Turns whose dispatch messages are not lost need no sweep."""

    name = "no beat"
    duration_s = 3.0
    extra_model_calls = False

    def __init__(self) -> None:
        self.stopped = 0
        self.logs: dict[Path, int] = {}

    def before(self, rig: Rig) -> None:
        rig.remove(rig.named("beat"))
        self.stopped = 1
        self.logs = rig.bookmarks()

    def inject(self, rig: Rig) -> None:
        pass

    def after(self, rig: Rig) -> None:
        rig.supervise("beat", rig.stack.beat)

    def evidence(self, rig: Rig) -> dict[str, int]:
        return {"beats stopped": self.stopped}

    def wrong(self, rig: Rig) -> list[str]:
        return ["a sweep dispatched turns"] if rig.count_in_logs('"turns_dispatched"', self.logs) else []
