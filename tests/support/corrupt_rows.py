"""Sound sessions as rows, faults that corrupt them, and legitimate changes. SQL statements, split at semicolons."""

from __future__ import annotations

from textwrap import dedent

# A session `s` of two finished turns, the first with two model calls and a tool call, and a session `dead` with a dead turn.
SOUND = """
INSERT INTO turns (id, workspace_id, session_id, status, opened_at_offset, read_through_offset, fence, settled_at, error_class) VALUES
    (%(t1)s, %(w)s, %(s)s, 'done', 0, 0, 1, now(), NULL), (%(t2)s, %(w)s, %(s)s, 'done', 4, 4, 2, now(), NULL),
    (%(t3)s, %(w)s, %(dead)s, 'dead', 0, 0, 5, now(), 'AttemptsSpent');
INSERT INTO events (workspace_id, session_id, "offset", kind, source, content, turn_id, tool_call_id, fence) VALUES
    (%(w)s, %(s)s, 0, 'customer_message', 'customer', '{"text": "a"}', %(t1)s, NULL, 0),
    (%(w)s, %(s)s, 1, 'tool_call', 'ai_agent', '{}', %(t1)s, 'c1', 1), (%(w)s, %(s)s, 2, 'tool_result', 'system', '{}', %(t1)s, 'c1', 1),
    (%(w)s, %(s)s, 3, 'agent_message', 'ai_agent', '{"text": "b"}', %(t1)s, NULL, 1),
    (%(w)s, %(s)s, 4, 'customer_message', 'customer', '{"text": "c"}', %(t2)s, NULL, 1),
    (%(w)s, %(s)s, 5, 'agent_message', 'ai_agent', '{"text": "d"}', %(t2)s, NULL, 2),
    (%(w)s, %(dead)s, 0, 'customer_message', 'customer', '{"text": "a"}', %(t3)s, NULL, 0),
    (%(w)s, %(dead)s, 1, 'status_update', 'system', '{"status": "dead"}', %(t3)s, NULL, 5);
INSERT INTO tool_calls (workspace_id, session_id, turn_id, tool_call_id, step, position, tool_id, tool_name, state, arguments_hash,
    idempotency_key, attempts) SELECT %(w)s, %(s)s, %(t1)s, 'c1', 0, 0, id, 'refund', 'succeeded', '', 'k1', 1 FROM tools;
INSERT INTO model_calls (workspace_id, session_id, turn_id, step, attempt, provider, model, state, input_tokens, output_tokens, cost_usd)
    VALUES (%(w)s, %(s)s, %(t1)s, 0, 0, 'openai', 'gpt-4o', 'settled', 10, 5, 0.25),
    (%(w)s, %(s)s, %(t1)s, 1, 0, 'openai', 'gpt-4o', 'unknown', 0, 0, NULL),
    (%(w)s, %(s)s, %(t2)s, 0, 0, 'openai', 'new', 'settled', 7, 1, NULL);
UPDATE sessions SET next_offset = 6, event_count = 6, message_count = 4, lease_fence = 2, input_tokens = 17, output_tokens = 6,
    tokens_used = 23, cost_usd = 0.25, unpriced_calls = 1, unknown_calls = 1 WHERE id = %(s)s;
UPDATE sessions SET next_offset = 2, event_count = 2, message_count = 1, lease_fence = 5 WHERE id = %(dead)s
"""


def event(kind: str, turn: str, tool_call_id: str = "", offset: int = 6) -> str:
    """Return statements that add an event to the session and count it."""
    message = int(kind in ("customer_message", "agent_message"))
    return (
        'INSERT INTO events (workspace_id, session_id, "offset", kind, source, content, turn_id, tool_call_id, fence)'
        f" VALUES (%(w)s, %(s)s, {offset}, '{kind}', 'system', '{{}}', %({turn})s, nullif('{tool_call_id}', ''), 2);"
        " UPDATE sessions SET next_offset = next_offset + 1, event_count = event_count + 1,"
        f" message_count = message_count + {message} WHERE id = %(s)s;"
    )


def turn(status: str, *, opened: str = "now()", not_before: str = "NULL", offset: int = 6, turn_id: str = "%(t4)s") -> str:
    """Return a statement that adds an open turn to the session."""
    return (
        "INSERT INTO turns (id, workspace_id, session_id, opened_at_offset, status, opened_at, claimed_at, not_before)"
        f" VALUES ({turn_id}, %(w)s, %(s)s, {offset}, '{status}', {opened}, {opened}, {not_before});"
    )


def ours(table: str, change: str, where: str = "true") -> str:
    """Return a statement that changes the session's rows."""
    column = "id" if table == "sessions" else "session_id"
    return f"UPDATE {table} SET {change} WHERE {column} = %(s)s AND {where};"


LONG_AGO = "now() - interval '1 hour'"
REPLIES = "kind = 'agent_message'"

# Fault -> (statements, {check: ids that it finds}). An offset of the session `dead` is "dead:OFFSET".
VIOLATIONS: dict[str, tuple[str, dict[str, list[str | None]]]] = {
    "a message that its turn never read": (
        ours("turns", "read_through_offset = NULL", "id = %(t2)s"),
        {"unaccounted messages": ["4"]},
    ),
    "a turn that read too far": (
        ours("turns", "read_through_offset = 4", "id = %(t1)s"),
        {"messages answered twice": ["4"], "replies before the messages they answer": ["t1"]},
    ),
    "a second reply": (event("agent_message", "t2"), {"done turns without exactly one reply": ["t2"]}),
    "a missing reply": (
        ours("events", "kind = 'note'", f"{REPLIES} AND turn_id = %(t2)s") + ours("sessions", "message_count = 3"),
        {"done turns without exactly one reply": ["t2"]},
    ),
    "a dead turn without a status update": (
        "UPDATE events SET kind = 'note' WHERE kind = 'status_update'",
        {"ended turns without a status update": ["t3"]},
    ),
    "a status update from before the end": (
        "UPDATE turns SET settled_at = settled_at + interval '1 s' WHERE id = %(t3)s",
        {"ended turns without a status update": ["t3"]},
    ),
    "a dead turn that replied": (
        ours("turns", "status = 'dead', error_class = 'X', settled_at = now()", "id = %(t2)s") + event("status_update", "t2"),
        {"failed or dead turns with a reply": ["t2"]},
    ),
    "a dead turn without a reason": (
        "UPDATE turns SET error_class = NULL WHERE id = %(t3)s",
        {"failed or dead turns without a reason": ["t3"]},
    ),
    "a gap in the log": (
        'DELETE FROM events WHERE session_id = %(s)s AND "offset" = 4;' + ours("sessions", "event_count = 5, message_count = 3"),
        {"offsets that are not 0, 1, 2 …": [None]},
    ),
    "an unused offset": (ours("sessions", "next_offset = 7"), {"offsets that are not 0, 1, 2 …": [None]}),
    "swapped replies": (
        ours("events", "turn_id = CASE turn_id WHEN %(t1)s THEN %(t2)s::uuid ELSE %(t1)s END", REPLIES)
        + ours("turns", "read_through_offset = 2, opened_at_offset = 2", "id = %(t2)s")
        + ours("events", "kind = 'note'", '"offset" = 4')
        + ours("sessions", "message_count = 3"),
        {"replies out of order": ["t2"]},
    ),
    "a stale writer": (
        'UPDATE events SET fence = 4 - "offset" WHERE session_id = %(dead)s',
        {"fences that decrease": ["dead:1"]},
    ),
    "an event's fence above the session's": (ours("sessions", "lease_fence = 1"), {"fences ahead of the session's": [None]}),
    "a turn's fence above the session's": (ours("turns", "fence = 3", "id = %(t2)s"), {"fences ahead of the session's": [None]}),
    "an unsafe tool called twice": (ours("tool_calls", "attempts = 2"), {"unsafe tool calls sent more than once": ["c1"]}),
    "a call without a result": (
        ours("events", "kind = 'note'", "kind = 'tool_result'"),
        {"tool calls without exactly one result after them": ["c1"]},
    ),
    "two results": (event("tool_result", "t1", "c1"), {"tool calls without exactly one result after them": ["c1"]}),
    "a result before its call": (
        ours("events", "kind = CASE kind WHEN 'tool_call' THEN 'tool_result' ELSE 'tool_call' END", "tool_call_id = 'c1'"),
        {"tool calls without exactly one result after them": ["c1"]},
    ),
    "a result without a call": (event("tool_result", "t1", "c9"), {"tool results without a call": ["c9"]}),
    "a call without its row": (
        "DELETE FROM tool_calls WHERE session_id = %(s)s",
        {"tool calls missing in the log or in their table": ["c1"]},
    ),
    "a wrong counter": (ours("sessions", "message_count = 5"), {"counters that differ from a recount": [None]}),
    "a wrong cost": (ours("sessions", "cost_usd = 0.26"), {"cost and tokens that differ from the ledger": [None]}),
    "an uncounted unknown call": (ours("sessions", "unknown_calls = 0"), {"cost and tokens that differ from the ledger": [None]}),
    "an unclaimed queued turn": (turn("queued", opened=LONG_AGO), {"unclaimed turns": ["t4"]}),
    "an unclaimed turn of a dead worker": (
        turn("running", opened=LONG_AGO) + ours("sessions", f"lease_owner = 'x', lease_until = {LONG_AGO}"),
        {"unclaimed turns": ["t4"]},
    ),
    "an unreleased lease": (
        ours("sessions", "lease_owner = 'x', lease_until = now() - interval '1 s'"),
        {"leases without a turn": [None]},
    ),
    "a model call left open": (
        ours("model_calls", "state = 'reserved'", "turn_id = %(t2)s") + ours("sessions", "unpriced_calls = 0"),
        {"open calls of ended turns": ["t2"]},
    ),
    "a tool call left open": (ours("tool_calls", "state = 'awaiting_approval'"), {"open calls of ended turns": ["t1"]}),
}

# Changes that violate nothing: open work, and legitimate results.
LEGITIMATE: dict[str, str] = {
    "a turn just opened": turn("queued"),
    "a turn behind another one": turn("queued") + turn("queued", opened=LONG_AGO, offset=7, turn_id="uuidv7()"),
    "a turn that waits for an approval": turn("waiting", opened="now() - interval '5 days'"),
    "a turn that waits for its provider": turn("queued", opened=LONG_AGO, not_before="now() + interval '1 hour'"),
    "a turn of a paused session": turn("queued", opened=LONG_AGO) + ours("sessions", "mode = 'paused'"),
    "a turn claimed by a worker": turn("running", opened=LONG_AGO)
    + ours("sessions", "lease_owner = 'x', lease_until = now() + interval '20 s'"),
    "a running tool call": turn("running")
    + event("tool_call", "t4", "c2")
    + dedent("""
        INSERT INTO tool_calls (workspace_id, session_id, turn_id, tool_call_id, step, position, tool_name, state, arguments_hash,
            idempotency_key) VALUES (%(w)s, %(s)s, %(t4)s, 'c2', 0, 0, 'x', 'running', '', 'k2')"""),
    "an unread message": turn("queued") + event("customer_message", "t4"),
    "a tool that became unsafe later": "UPDATE tool_calls SET attempts = 2; UPDATE tools SET updated_at = now() + interval '1 s'",
    "a requested and given approval": event("status_update", "t2") + event("status_update", "t1", offset=7),
    "a redriven dead turn": "UPDATE turns SET status = 'done', error_class = NULL WHERE id = %(t3)s;"
    'INSERT INTO events (workspace_id, session_id, "offset", kind, source, content, turn_id, fence)'
    " VALUES (%(w)s, %(dead)s, 2, 'agent_message', 'ai_agent', '{}', %(t3)s, 5);"
    " UPDATE sessions SET next_offset = 3, event_count = 3, message_count = 2 WHERE id = %(dead)s",
}
SETTLED = ("a tool that became unsafe later", "a requested and given approval", "a redriven dead turn")
