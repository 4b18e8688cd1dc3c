"""Random past activity as rows: sessions, turns, calls and their ends, in random order."""

from __future__ import annotations

from datetime import datetime, timedelta
from random import Random
from uuid import UUID

import psycopg
from psycopg import Connection
from uuid_utils.compat import uuid7

from tests.support.factories import Tenant


class Activity:
    """Makes one random change at a time, as the server's superuser, each in its own transaction."""

    def __init__(self, url: str, tenants: list[Tenant], first: datetime, days: int, seed: int) -> None:
        self.random, self.tenants, self.first, self.days = Random(seed), tenants, first, days
        self.db: Connection[tuple[object, ...]] = psycopg.connect(url, autocommit=True)
        self.sessions: list[tuple[Tenant, UUID, datetime]] = []
        self.turns: list[tuple[Tenant, UUID, UUID, datetime]] = []

    def close(self) -> None:
        self.db.close()

    def moment(self, after: datetime | None = None) -> datetime:
        """Return a random time within the period; with `after`, not before it and mostly soon after it."""
        if after is None:
            return self.first + timedelta(seconds=self.random.uniform(0, self.days * 86_400))
        return after + timedelta(milliseconds=self.random.choice([0, 7, 900, 12_345, 3_600_000, 90_000_000]) * self.random.random())

    def step(self) -> None:
        """Make one random change."""
        steps = [self.opens, self.says, self.adds_turn, self.adds_turn, self.settles, self.settles, self.calls_model, self.calls_model]
        steps += [self.calls_tool, self.ends, self.rates, self.redrives, self.redrives, self.reopens, self.forgets]
        self.random.choice(steps)()

    def opens(self) -> None:
        tenant, session, at = self.random.choice(self.tenants), uuid7(), self.moment()
        self.db.execute(
            "INSERT INTO sessions (id, workspace_id, agent_id, started_at, last_activity_at) VALUES (%s, %s, %s, %s, %s)",
            (session, tenant.workspace_id, tenant.agent_id, at, at),
        )
        self.sessions.append((tenant, session, at))

    def says(self) -> None:
        if not self.sessions:
            self.opens()
            return
        _, session, started = self.random.choice(self.sessions)
        at = self.moment(started)
        kind = self.random.choice(["customer_message", "agent_message"])
        with self.db.transaction():
            self.db.execute(
                'INSERT INTO events (workspace_id, session_id, "offset", kind, source, content, created_at)'
                " SELECT workspace_id, id, next_offset, %s, 'customer', '{}', %s FROM sessions WHERE id = %s",
                (kind, at, session),
            )
            self.db.execute(
                "UPDATE sessions SET next_offset = next_offset + 1, message_count = message_count + 1, last_activity_at = %s WHERE id = %s",
                (at, session),
            )

    def adds_turn(self) -> None:
        if not self.sessions:
            self.opens()
            return
        tenant, session, started = self.random.choice(self.sessions)
        turn, at = uuid7(), self.moment(started)
        self.db.execute(
            "INSERT INTO turns (id, workspace_id, session_id, opened_at_offset, opened_at, started_at)"
            " SELECT %s, %s, %s, coalesce(max(opened_at_offset) + 1, 0), %s, %s FROM turns WHERE session_id = %s",
            (turn, tenant.workspace_id, session, at, self.random.choice([None, self.moment(at)]), session),
        )
        self.turns.append((tenant, session, turn, at))

    def settles(self) -> None:
        if not self.turns:
            self.adds_turn()
            return
        _, _, turn, opened = self.random.choice(self.turns)
        self.db.execute(
            "UPDATE turns SET status = %s, settled_at = %s, running_s = %s WHERE id = %s AND settled_at IS NULL",
            (self.random.choice(["done", "done", "failed", "dead", "cancelled"]), self.moment(opened), self.random.random() * 9, turn),
        )

    def redrives(self) -> None:
        self.db.execute(
            "UPDATE turns SET status = 'queued', settled_at = NULL, started_at = NULL, running_s = 0"
            " WHERE id = (SELECT id FROM turns WHERE status IN ('dead', 'failed') ORDER BY id OFFSET %s LIMIT 1)",
            (self.random.randrange(3),),
        )

    def calls_model(self) -> None:
        if not self.turns:
            self.adds_turn()
            return
        tenant, session, turn, opened = self.random.choice(self.turns)
        at, state = self.moment(opened), self.random.choice(["settled", "settled", "unknown", "failed"])
        tokens = [self.random.randrange(0, 90_000) if state == "settled" else 0 for _ in range(5)]
        cost = self.random.choice([None, "0.0000000001", "1.2345678901"]) if state == "settled" else None
        step = self.db.execute("SELECT count(*) FROM model_calls WHERE turn_id = %s", (turn,)).fetchone()
        with self.db.transaction():
            self.db.execute(
                "INSERT INTO model_calls (turn_id, step, attempt, workspace_id, session_id, provider, model, state)"
                " VALUES (%s, %s, 0, %s, %s, 'openai', %s, 'reserved')",
                (turn, step and step[0], tenant.workspace_id, session, self.random.choice(["gpt-4o", "gpt-4o-mini"])),
            )
            self.db.execute(
                "UPDATE model_calls SET state = %s, settled_at = %s, input_tokens = %s, cached_input_tokens = %s, cache_write_tokens = %s,"
                " output_tokens = %s, reasoning_tokens = %s, cost_usd = %s, latency_ms = %s, ttft_ms = %s WHERE turn_id = %s AND step = %s",
                (state, at, *tokens, cost, self.random.randrange(0, 90_000), self.random.choice([None, 5, 300]), turn, step and step[0]),
            )
            self.db.execute(
                "UPDATE sessions SET tokens_used = tokens_used + %s, cost_usd = cost_usd + coalesce(%s::numeric, 0) WHERE id = %s",
                (tokens[0] + tokens[3], cost, session),
            )

    def calls_tool(self) -> None:
        if not self.turns:
            self.adds_turn()
            return
        tenant, session, turn, opened = self.random.choice(self.turns)
        call = str(uuid7())
        self.db.execute(
            "INSERT INTO tool_calls (session_id, tool_call_id, workspace_id, turn_id, step, position, tool_id, tool_name, state,"
            " arguments_hash, idempotency_key) SELECT %s, %s, %s, %s, 0, 0,"
            " (SELECT id FROM tools WHERE workspace_id = %s AND %s), 'lookup', 'running', '', %s",
            (session, call, tenant.workspace_id, turn, tenant.workspace_id, self.random.random() < 0.8, call),
        )
        if self.random.random() < 0.9:
            self.db.execute(
                "UPDATE tool_calls SET state = %s, settled_at = %s, latency_ms = %s WHERE tool_call_id = %s",
                (
                    self.random.choice(["succeeded", "succeeded", "failed", "denied", "unknown"]),
                    self.moment(opened),
                    self.random.choice([None, 0, 40, 70_000]),
                    call,
                ),
            )

    def ends(self) -> None:
        if self.sessions:
            _, session, started = self.random.choice(self.sessions)
            status = self.random.choice(["completed", "completed", "abandoned"])
            self.db.execute(
                "UPDATE sessions SET status = %s, ended_at = %s WHERE id = %s AND status = 'active'",
                (status, self.moment(started), session),
            )

    def reopens(self) -> None:
        """Reactivate an abandoned session."""
        self.db.execute(
            "UPDATE sessions SET status = 'active', ended_at = NULL"
            " WHERE id = (SELECT id FROM sessions WHERE status = 'abandoned' ORDER BY id LIMIT 1)"
        )

    def rates(self) -> None:
        if self.sessions:
            score = self.random.choice([None, 1, 3, 5])
            self.db.execute("UPDATE sessions SET satisfaction_score = %s WHERE id = %s", (score, self.random.choice(self.sessions)[1]))

    def forgets(self) -> None:
        """Write a change that no count depends on."""
        if self.sessions:
            self.db.execute("UPDATE sessions SET lease_fence = lease_fence + 1 WHERE id = %s", (self.random.choice(self.sessions)[1],))
