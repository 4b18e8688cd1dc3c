"""Sound past conversations as rows, with everything that a session can have, and with text that must be gone once they are deleted."""

from __future__ import annotations

import datetime
from typing import Any
from uuid import UUID

import psycopg

from tests.support.factories import Tenant

# The tables with rows of sessions, and the column that names the session.
OF_SESSIONS = {
    "events": "session_id",
    "turns": "session_id",
    "model_calls": "session_id",
    "tool_calls": "session_id",
    "approvals": "session_id",
    "budgets": "scope_id",
    "sessions": "id",
}

# Of each session %(turns)s turns of four events, one model call, one tool call and one approval each; the last call's outcome is unknown,
# and has an amount of the agent's budget reserved. Every text column has a text of the session.
_FILL = """
CREATE TEMP TABLE x ON COMMIT DROP AS
SELECT s.id AS s, s.workspace_id AS w, s.agent_id AS a, n, uuidv7() AS t, uuidv7() AS c, n = %(turns)s - 1 AS last
FROM sessions s, generate_series(0, %(turns)s - 1) n WHERE s.id = ANY (%(ids)s);
INSERT INTO turns (id, workspace_id, session_id, status, opened_at_offset, read_through_offset, fence, opened_at, started_at, claimed_at,
    settled_at, error_detail, agent_digest)
SELECT t, w, s, 'done', 4 * n, 4 * n, 1, %(at)s, %(at)s, %(at)s, %(at)s, %(words)s, 'digest' FROM x;
INSERT INTO events (workspace_id, session_id, "offset", kind, source, content, metadata, turn_id, tool_call_id, message_key, fence,
    created_at)
SELECT w, s, 4 * n + k, kind, source, jsonb_build_object('text', %(words)s::text), jsonb_build_object('more', %(words)s::text), t,
    CASE WHEN k IN (1, 2) THEN 'c' || n END, CASE WHEN k = 0 THEN %(words)s || n END, 1, %(at)s
FROM x, (VALUES (0, 'customer_message', 'customer'), (1, 'tool_call', 'ai_agent'), (2, 'tool_result', 'system'),
                (3, 'agent_message', 'ai_agent')) e (k, kind, source);
INSERT INTO model_calls (workspace_id, session_id, turn_id, step, attempt, provider, model, state, input_tokens, output_tokens, cost_usd,
    provider_request_id, created_at, settled_at)
SELECT w, s, t, 0, 0, 'openai', 'gpt-4o', CASE WHEN last THEN 'unknown' ELSE 'settled' END, CASE WHEN last THEN 0 ELSE 10 END,
    CASE WHEN last THEN 0 ELSE 5 END, CASE WHEN NOT last THEN 0.25 END, %(words)s, %(at)s, %(at)s FROM x;
INSERT INTO tool_calls (workspace_id, session_id, turn_id, tool_call_id, step, position, tool_name, state, arguments, arguments_hash,
    idempotency_key, attempts, error, created_at, settled_at)
SELECT w, s, t, 'c' || n, 0, 0, 'refund', 'succeeded', jsonb_build_object('name', %(words)s::text), '', s || 'c' || n, 1, %(words)s, %(at)s,
    %(at)s FROM x;
INSERT INTO approvals (workspace_id, session_id, turn_id, tool_call_id, tool_name, arguments, arguments_hash, status, requested_at,
    expires_at, decided_by, decided_at, reason, edited_arguments)
SELECT w, s, t, 'c' || n, 'refund', jsonb_build_object('name', %(words)s::text), '', 'approved', %(at)s, %(at)s, 'Olga', %(at)s, %(words)s,
    jsonb_build_object('name', %(words)s::text) FROM x;
INSERT INTO budgets (workspace_id, scope, scope_id, unit, period, cap) SELECT DISTINCT w, 'session', s, 'usd', 'total', 5 FROM x;
INSERT INTO budgets (workspace_id, scope, scope_id, unit, period, cap, reserved)
SELECT w, 'agent', a, 'usd', 'total', 5000, 0.5 * count(*) FROM x WHERE last GROUP BY w, a
ON CONFLICT (workspace_id, scope, scope_id, unit, period) DO UPDATE SET reserved = budgets.reserved + excluded.reserved;
INSERT INTO budget_holds (workspace_id, turn_id, step, attempt, budget_id, amount, day)
SELECT x.w, t, 0, 0, b.id, 0.5, %(at)s::date FROM x JOIN budgets b ON b.scope = 'agent' AND b.scope_id = x.a WHERE last;
UPDATE sessions SET status = %(status)s, next_offset = 4 * %(turns)s, event_count = 4 * %(turns)s, message_count = 2 * %(turns)s,
    lease_fence = 1, input_tokens = 10 * %(turns)s - 10, output_tokens = 5 * %(turns)s - 5, tokens_used = 15 * %(turns)s - 15,
    cost_usd = 0.25 * (%(turns)s - 1), unknown_calls = 1, title = %(words)s, metadata = jsonb_build_object('more', %(words)s::text),
    variables = metadata, ip_address = %(words)s, user_agent = %(words)s, customer_id = %(customer)s, created_at = %(at)s,
    started_at = %(at)s, last_activity_at = %(at)s, ended_at = CASE WHEN %(status)s <> 'active' THEN %(at)s::timestamptz END
WHERE id = ANY (%(ids)s)
"""


def filled(
    database_url: str,
    made: Tenant,
    ids: list[UUID] | None = None,
    *,
    days_ago: float = 31.0,
    turns: int = 2,
    status: str = "completed",
    words: str = "hush",
    customer: str | None = None,
) -> None:
    """Fill the tenant's sessions (or those of `ids`) with conversations of `turns` turns that ended `days_ago`."""
    at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days_ago)
    values: dict[str, Any] = {
        "ids": ids or made.session_ids,
        "turns": turns,
        "at": at,
        "status": status,
        "words": words,
        "customer": customer,
    }
    with psycopg.connect(database_url, cursor_factory=psycopg.ClientCursor) as db:
        db.execute(_FILL, values)


def left(database_url: str, ids: list[UUID]) -> dict[str, int]:
    """Return the number of these sessions' rows by table; tables without any are left out."""
    with psycopg.connect(database_url) as db:
        counts = {
            table: db.execute(f"SELECT count(*) FROM {table} WHERE {column} = ANY (%s)", [ids]) for table, column in OF_SESSIONS.items()
        }
        found = {table: row[0] for table, cursor in counts.items() if (row := cursor.fetchone())}
        found["sessions"] = (db.execute("SELECT count(*) FROM sessions WHERE id = ANY (%s)", [ids]).fetchone() or (0,))[0]
    return {table: count for table, count in found.items() if count}
