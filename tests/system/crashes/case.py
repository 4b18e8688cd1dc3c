"""One case: two messages in one session, one or two crashes, and the conditions that must hold at the end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import psycopg

from tests.support.invariants import violations
from tests.support.proxy import Proxy
from tests.support.servers import EmbeddedValkey, until
from tests.system.crashes.crash_table import Crash, Event, ProcessKind
from tests.system.crashes.runner import Armed, Runner

TOOLS = {"orders_lookup": "idempotent", "refund": "unsafe"}
UNDISTURBED_CALLS = 6
NOTHING: dict[str, Any] = {"requests": 0, "effects": 0, "by_key": {}}
OPEN = "SELECT count(*) FROM turns WHERE session_id = %s AND status IN ('queued', 'running', 'waiting')"
LEASED = "SELECT count(*) FROM sessions WHERE id = %s AND lease_owner IS NOT NULL"
BLOCKED_WRITES = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND strpos(query, 'write_turn') > 0"""
SNAPSHOT = """
    SELECT (SELECT json_agg(e ORDER BY e."offset") FROM events e WHERE e.session_id = s.id),
        (SELECT json_agg(t ORDER BY t.id) FROM turns t WHERE t.session_id = s.id),
        (SELECT json_agg(m ORDER BY m.turn_id, m.step, m.attempt) FROM model_calls m WHERE m.session_id = s.id),
        (SELECT json_agg(c ORDER BY c.tool_call_id) FROM tool_calls c WHERE c.session_id = s.id), row_to_json(s)
    FROM sessions s WHERE s.id = %s"""


@dataclass
class Outcome:
    """The result of a case; `wrong` is empty if every invariant holds."""

    name: str
    answered: int = 0
    attempts: list[int] = field(default_factory=list)
    repeated_requests: int = 0
    ledger_rows: int = 0
    lookups: list[int] = field(default_factory=list)
    refunds: list[int] = field(default_factory=list)
    refund_states: list[str] = field(default_factory=list)
    agent_versions: list[int] = field(default_factory=list)
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Case:
    """One run of `crashes`, in order, each in a process of its own; the second process continues after the first crash."""

    def __init__(self, runner: Runner, crashes: Sequence[Crash]) -> None:
        self.runner, self.crashes = runner, tuple(crashes)
        self.outcome = Outcome(" then ".join(crash.name for crash in crashes))
        made, self.api_key = runner.tenant(TOOLS)
        self.session_id, self.agent_id = made.session_id, made.agent_id
        unanswered = {crash.at.partition(":")[0] for crash in crashes if crash.event is Event.UNANSWERED}
        latency = "[[latency 1000]] " if "model_call.before_send" in unanswered else ""
        slow = ', "latency_ms": 1000' if "tool_call.before_send" in unanswered else ""
        self.texts = [
            f'[[call orders_lookup {{"order": {order}{slow}}}]] [[then refund {{"order": {order}, "amount": 5{slow}}}]] {latency}'
            f"order {order} of {self.session_id}"
            for order in (41, 42)
        ]
        self.posted = 0  # messages answered with 202
        self.suspended: list[Armed] = []
        self.armed: list[Armed] = []

    def run(self) -> Outcome:
        """Run the case. Raises AssertionError if a crash did not happen or a turn did not end."""
        began = time.monotonic()
        try:
            for place, crash in enumerate(self.crashes):
                following = self.crashes[place + 1] if place + 1 < len(self.crashes) else None
                if crash.where is ProcessKind.API:
                    self._in_the_api(crash)
                else:
                    together = following is None or (following.where is ProcessKind.WORKER and not crash.survives)
                    self._post(2 if together else 1)
                    self._in_a_worker(crash)
            self._post(2)
            self._settle()
            self._resume_suspended()
            self._deliver_again()
        finally:
            for armed in self.armed:
                if not armed.ended:
                    armed.process.kill()
        self._check()
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    # The crashes

    def _post(self, count: int) -> None:
        """Have the clean API accept the first `count` messages; their keys identify those that were accepted already."""
        while self.posted < count:
            assert self._send(self.posted), "the clean API gave no answer"
            self.posted += 1

    def _send(self, number: int, url: str = "") -> bool:
        return self.runner.post(self.api_key, self.session_id, f"message-{number}", self.texts[number], url) is not None

    def _in_the_api(self, crash: Crash) -> None:
        armed, url = self.runner.arm(crash)
        self.armed.append(armed)
        deadline = time.monotonic() + 20
        while not armed.happened:
            assert self.posted < 2, f"two messages were accepted, and the API did not reach {crash.name}"
            assert time.monotonic() < deadline, f"the API neither answered nor reached {crash.name}"
            if crash.at == "dispatch.published":
                self._settle()  # only the first open turn of a session is dispatched
            if self._send(self.posted, url):
                self.posted += 1
                waited = time.monotonic() + 1
                while not armed.happened and time.monotonic() < waited:
                    time.sleep(0.02)
            else:
                until(lambda: armed.happened)
        if crash.event is Event.BROKER_EMPTIED:
            assert self.runner.empty(self.runner.armed_broker) > 0, "the broker held no message to lose"

    def _in_a_worker(self, crash: Crash) -> None:
        match crash.event:
            case Event.NONE:
                self._reach(crash, self.runner.armed_broker)
            case Event.UNANSWERED:
                before = self._requests(crash)
                armed = self._reach(crash, self.runner.armed_broker)
                until(lambda: self._requests(crash) == before + armed.failpoint.nth)
                armed.process.kill()
            case Event.AGENT_CHANGED:
                self._reach(crash, self.runner.armed_broker)
                change = {"system_prompt": "You have changed your mind about everything."}
                assert self.runner.request("PATCH", f"/v1/agents/{self.agent_id}", change, self.api_key), "no answer"
            case Event.SUSPENDED:
                self.suspended.append(self._reach(crash, self.runner.armed_broker))
            case Event.RESUMED_EARLY:
                self._resume_early(crash)
            case Event.CONNECTIONS_ENDED:
                armed = self._reach(crash, self.runner.armed_broker)
                self._end_connections(armed)
                self._finish_alive(armed, self.runner.armed_broker)
            case Event.REPLY_LOST:
                self._lose_reply(crash)
            case Event.BROKER_KILLED:
                self._kill_broker(crash)

    def _reach(self, crash: Crash, broker_url: str, **env: str) -> Armed:
        armed, _ = self.runner.arm(crash, broker_url=broker_url, **env)
        self.armed.append(armed)
        self.runner.sweep_until(broker_url, lambda: armed.happened)
        return armed

    def _end_connections(self, armed: Armed) -> None:
        """End every worker's connection while one of them executes the write, as a restart of the database does."""
        with psycopg.connect(self.runner.database_url) as mine:
            mine.execute("SELECT 1 FROM sessions WHERE id = %s FOR UPDATE", (self.session_id,))
            armed.resume()
            until(
                lambda: self._one(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND strpos(query, 'write_turn') > 0"
                )
            )
            ended = self._one(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'turnline-worker'"
            )
            assert ended, "there was no connection to end"
        until(lambda: "sending it again" in armed.process.log.read_text())

    def _resume_early(self, crash: Crash) -> None:
        """Let a suspended worker write while another runs its turn, before its heartbeat, so that only the fence can refuse the write."""
        suspended = self._reach(crash, self.runner.armed_broker, TURNLINE_TURN_HEARTBEAT_S="60")
        other = self._reach(crash, self.runner.armed_broker)
        before = self._snapshot()
        suspended.resume()
        until(lambda: "taken over" in suspended.process.log.read_text())
        if self._snapshot() != before:
            self.outcome.wrong.append("a worker that was suspended past its lease wrote into a turn that another was running")
        other.process.kill()
        assert suspended.process.stop() == 0

    def _lose_reply(self, crash: Crash) -> None:
        with Proxy(urlsplit(self.runner.database_url).port or 0) as proxy:
            armed = self._reach(crash, self.runner.armed_broker, DATABASE_URL=proxy.url(self.runner.database_url))
            written = self._writes()
            before = proxy.counts
            assert proxy.lose_replies() > 0
            armed.resume()
            until(lambda: self._writes() > written)
            until(lambda: "sending it again" in armed.process.log.read_text())
            assert (proxy.counts - before).lost_replies > 0, "no reply was lost"
            self._finish_alive(armed, self.runner.armed_broker)

    def _kill_broker(self, crash: Crash) -> None:
        with EmbeddedValkey(None) as broker:
            armed = self._reach(crash, broker.url)
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGKILL)
            until(lambda: not broker.alive)
            done = "SELECT count(*) FROM turns WHERE session_id = %s AND status = 'done'"
            before = self._one(done, self.session_id)
            armed.resume()
            until(lambda: self._one(done, self.session_id) > before)
            armed.process.kill()  # it would wait for its broker

    def _requests(self, crash: Crash) -> int:
        """Return the number of requests so far, to the model or to tools, whichever `crash` waits in."""
        seen = self.runner.counts()
        if crash.at.startswith("model_call.before_send"):
            return self._model_requests(seen)
        keys = self._rows("SELECT tool_name, idempotency_key FROM tool_calls WHERE session_id = %s", self.session_id)
        return sum(seen["tools"].get(name, NOTHING)["by_key"].get(key, NOTHING)["requests"] for name, key in keys)

    def _model_requests(self, seen: dict[str, Any]) -> int:
        return sum(seen["by_text"].get(text, 0) for text in self.texts)

    def _finish_alive(self, armed: Armed, broker_url: str) -> None:
        """Have a process that survived its crash finish the posted messages and stop in order."""
        self.runner.sweep_until(broker_url, self._settled)
        assert not armed.ended, "the process died although it should have survived"
        assert armed.process.stop() == 0

    def _settle(self) -> None:
        """Have the clean worker run the remaining turns."""
        self.runner.sweep_until(self.runner.clean_broker, self._settled)

    def _resume_suspended(self) -> None:
        """Resume the suspended workers, whose turns were taken over; they must write nothing."""
        before = self._snapshot()
        for armed in self.suspended:
            armed.resume()
            until(lambda armed=armed: "taken over" in armed.process.log.read_text())  # type: ignore[misc]
            assert armed.process.stop() == 0
        if self._snapshot() != before:
            self.outcome.wrong.append("a worker that was suspended past its lease changed something")

    def _deliver_again(self) -> None:
        """Deliver every dispatch again; it must change nothing."""
        before = self._snapshot()
        for (turn_id,) in self._rows("SELECT id FROM turns WHERE session_id = %s", self.session_id):
            self.runner.dispatch(self.runner.clean_broker, turn_id)
        until(lambda: self.runner.idle(self.runner.clean_broker))
        if self._snapshot() != before:
            self.outcome.wrong.append("a repeated dispatch changed something")

    # The result

    def _check(self) -> None:
        out, wrong = self.outcome, self.outcome.wrong
        seen = self.runner.counts()
        turns = self._rows(
            "SELECT status, attempts, agent_version, (SELECT count(*) FROM events e WHERE e.turn_id = t.id AND e.kind = 'agent_message')"
            " FROM turns t WHERE session_id = %s ORDER BY opened_at_offset",
            self.session_id,
        )
        out.answered = sum(status == "done" and answers == 1 for status, _, _, answers in turns)
        out.attempts = [attempts for _, attempts, _, _ in turns]
        out.agent_versions = [version for _, _, version, _ in turns]
        if len(turns) != 2 or out.answered != 2:
            wrong.append(f"two messages, and these turns (status, attempts, version, answers): {turns}")
        requests = self._model_requests(seen)
        out.repeated_requests = requests - UNDISTURBED_CALLS
        out.ledger_rows = self._one("SELECT count(*) FROM model_calls WHERE session_id = %s", self.session_id)
        if out.ledger_rows < requests:
            wrong.append(f"the provider saw {requests} requests, the ledger holds {out.ledger_rows}")
        self._check_tools(seen["tools"])
        wrong += [f"{name}: {ids}" for name, ids in violations(self.runner.database_url).items()]
        if seen["bad_requests"]:
            wrong.append(f"the provider refused requests: {seen['bad_requests'][:3]}")

    def _check_tools(self, seen: dict[str, Any]) -> None:
        out, wrong = self.outcome, self.outcome.wrong
        query = "SELECT idempotency_key, state FROM tool_calls WHERE session_id = %s AND tool_name = %s ORDER BY created_at"
        for key, state in self._rows(query, self.session_id, "orders_lookup"):
            done = seen["orders_lookup"]["by_key"].get(key, NOTHING)
            out.lookups.append(done["requests"])
            if done["effects"] != 1 or state != "succeeded":
                wrong.append(f"an idempotent tool call ended as {state}, with {done}")
        for key, state in self._rows(query, self.session_id, "refund"):
            done = seen.get("refund", NOTHING)["by_key"].get(key, NOTHING)
            out.refunds.append(done["requests"])
            out.refund_states.append(state)
            known = state == "succeeded" and done["requests"] == 1
            if done["requests"] > 1 or not (known or state == "unknown"):
                wrong.append(f"an unsafe tool call ended as {state}, with {done}")
        if len(out.lookups) != 2 or len(out.refunds) != 2:
            wrong.append(f"{len(out.lookups)} lookups and {len(out.refunds)} refunds in the log")

    def _settled(self) -> bool:
        return bool(self._one(OPEN, self.session_id) == 0 and self._one(LEASED, self.session_id) == 0)

    def _writes(self) -> int:
        written: int = self._one("SELECT sum(writes) FROM turns WHERE session_id = %s", self.session_id)
        return written

    def _snapshot(self) -> object:
        return self._rows(SNAPSHOT, self.session_id)

    def _one(self, query: str, *parameters: object) -> Any:
        return self.runner.one(query, *parameters)

    def _rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self.runner.rows(query, *parameters)
