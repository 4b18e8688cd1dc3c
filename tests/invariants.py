"""What holds in the database once the dust has settled, as questions whose every answer is a violation (DESIGN section 8, 1 to 7)."""

from __future__ import annotations

import psycopg

VIOLATIONS = {
    "messages without a turn that accounts for them": """
        SELECT e.session_id, e."offset" FROM events e JOIN sessions s ON s.id = e.session_id
        WHERE e.kind = 'customer_message' AND e.turn_id IS NOT NULL AND NOT EXISTS (
            SELECT 1 FROM turns t WHERE t.session_id = e.session_id AND t.status IN ('done', 'failed', 'dead', 'cancelled')
            AND e."offset" BETWEEN t.opened_at_offset AND t.read_through_offset)""",
    "messages that two turns answer": """
        SELECT e.session_id, e."offset" FROM events e JOIN turns t ON t.session_id = e.session_id
            AND e."offset" BETWEEN t.opened_at_offset AND t.read_through_offset
        WHERE e.kind = 'customer_message' GROUP BY 1, 2 HAVING count(*) > 1""",
    "done turns without exactly one reply": """
        SELECT t.id, count(e.id) FROM turns t LEFT JOIN events e ON e.turn_id = t.id AND e.kind = 'agent_message'
        WHERE t.status = 'done' GROUP BY t.id HAVING count(e.id) <> 1""",
    "turns that ended otherwise, without exactly one status_update or with a reply": """
        SELECT t.id FROM turns t LEFT JOIN events e ON e.turn_id = t.id
        WHERE t.status IN ('failed', 'dead', 'cancelled') GROUP BY t.id
        HAVING count(*) FILTER (WHERE e.kind = 'status_update') <> 1 OR count(*) FILTER (WHERE e.kind = 'agent_message') > 0""",
    "failed or dead turns without a reason": "SELECT id FROM turns WHERE status IN ('failed', 'dead') AND error_class IS NULL",
    "replies before the messages they answer": """
        SELECT t.id FROM turns t JOIN events e ON e.turn_id = t.id AND e.kind = 'agent_message'
        WHERE e."offset" <= t.read_through_offset""",
    "replies out of the order of what they answer": """
        SELECT session_id FROM (SELECT e.session_id, e."offset" - lag(e."offset") OVER (
            PARTITION BY e.session_id ORDER BY t.opened_at_offset) AS step
            FROM turns t JOIN events e ON e.turn_id = t.id AND e.kind = 'agent_message') x WHERE step < 0""",
    "offsets that are not 0 … n-1": """
        SELECT s.id FROM sessions s LEFT JOIN events e ON e.session_id = s.id GROUP BY s.id
        HAVING s.next_offset <> count(e.id) OR coalesce(max(e."offset"), -1) <> count(e.id) - 1 OR coalesce(min(e."offset"), 0) <> 0""",
    "fences that decrease": """
        SELECT session_id FROM (SELECT session_id, fence - lag(fence) OVER (PARTITION BY session_id ORDER BY "offset") AS step
            FROM events) x WHERE step < 0""",
    "tool calls without exactly one result after them": """
        SELECT c.session_id, c.tool_call_id FROM events c LEFT JOIN events r ON r.session_id = c.session_id
            AND r.tool_call_id = c.tool_call_id AND r.kind = 'tool_result'
        WHERE c.kind = 'tool_call' GROUP BY 1, 2, c."offset" HAVING count(r.id) <> 1 OR min(r."offset") <= c."offset\"""",
    "counters that differ from a recount": """
        SELECT s.id FROM sessions s
        LEFT JOIN (SELECT session_id, count(*) AS n, count(*) FILTER (WHERE kind IN ('customer_message', 'agent_message')) AS m
                   FROM events GROUP BY 1) e ON e.session_id = s.id
        LEFT JOIN (SELECT session_id, sum(input_tokens) AS i, sum(cached_input_tokens) AS c, sum(output_tokens) AS o,
                       sum(reasoning_tokens) AS r, coalesce(sum(cost_usd), 0) AS usd,
                       count(*) FILTER (WHERE state = 'settled' AND cost_usd IS NULL) AS unpriced,
                       count(*) FILTER (WHERE state = 'unknown') AS unknown
                   FROM model_calls GROUP BY 1) l ON l.session_id = s.id
        WHERE (s.event_count, s.message_count) IS DISTINCT FROM (coalesce(e.n, 0)::integer, coalesce(e.m, 0)::integer)
            OR (s.input_tokens, s.cached_input_tokens, s.output_tokens, s.reasoning_tokens, s.tokens_used, s.cost_usd, s.unpriced_calls,
                s.unknown_calls) IS DISTINCT FROM (coalesce(l.i, 0), coalesce(l.c, 0), coalesce(l.o, 0), coalesce(l.r, 0),
                coalesce(l.i + l.o, 0), coalesce(l.usd, 0), coalesce(l.unpriced, 0)::integer, coalesce(l.unknown, 0))""",
    "turns left open": "SELECT id, status FROM turns WHERE status IN ('queued', 'running', 'waiting')",
    "leases left": "SELECT id, lease_owner FROM sessions WHERE lease_owner IS NOT NULL",
    "calls left open": """
        SELECT turn_id, 'model call ' || step FROM model_calls WHERE state = 'reserved'
        UNION ALL SELECT turn_id, tool_call_id FROM tool_calls WHERE state IN ('requested', 'running')""",
    "idempotency keys used twice": "SELECT idempotency_key FROM tool_calls GROUP BY 1 HAVING count(*) > 1",
}


def violations(database_url: str) -> dict[str, list[tuple[object, ...]]]:
    """What is wrong in a database where nothing is running any more, by name; the ids of at most five of each."""
    found: dict[str, list[tuple[object, ...]]] = {}
    with psycopg.connect(database_url) as db:
        for name, query in VIOLATIONS.items():
            rows = db.execute(f"SELECT * FROM ({query}) v LIMIT 5").fetchall()  # type: ignore[arg-type]
            if rows:
                found[name] = rows
    return found
