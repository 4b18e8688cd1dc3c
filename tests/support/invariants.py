"""What holds in the database once the dust has settled: what holds at any time, and beyond that, nothing is left open."""

from __future__ import annotations

import psycopg

from store.operations.audit_checks import QUESTIONS

# Beyond what `turnline audit` asks: nothing is under way any more, and what was said may be read.
DRAINED = {
    "turns left open": "SELECT id, status FROM turns WHERE status IN ('queued', 'running', 'waiting')",
    "leases left": "SELECT id, lease_owner FROM sessions WHERE lease_owner IS NOT NULL",
    "calls left open": """
        SELECT turn_id, 'model call ' || step FROM model_calls WHERE state = 'reserved'
        UNION ALL SELECT turn_id, tool_call_id FROM tool_calls WHERE state IN ('requested', 'running')""",
    "budgets that hold other than their calls do": """
        SELECT b.id, b.reserved FROM budgets b LEFT JOIN budget_holds h ON h.budget_id = b.id AND (b.period = 'total' OR h.day = b.day)
        GROUP BY b.id HAVING b.reserved <> coalesce(sum(h.amount), 0)""",
    "holds of calls that are known": """
        SELECT h.turn_id, h.step FROM budget_holds h LEFT JOIN model_calls c USING (turn_id, step, attempt)
        WHERE c.state IS DISTINCT FROM 'unknown'""",
    "turns that ended otherwise, without exactly one status_update that says so for each time they ended, or with a reply": """
        SELECT t.id FROM turns t LEFT JOIN events e ON e.turn_id = t.id
        WHERE t.status IN ('failed', 'dead', 'cancelled') GROUP BY t.id
        HAVING t.redrives + 1
                <> count(*) FILTER (WHERE e.kind = 'status_update' AND e.content->>'status' IN ('failed', 'dead', 'cancelled'))
            OR count(*) FILTER (WHERE e.kind = 'agent_message') > 0""",
}
VIOLATIONS = {question.name: question.text(sessions=None, unclaimed_s=0) for question in QUESTIONS} | DRAINED


def violations(database_url: str) -> dict[str, list[tuple[object, ...]]]:
    """What is wrong in a database where nothing is running any more, by name; the ids of at most five of each."""
    found: dict[str, list[tuple[object, ...]]] = {}
    with psycopg.connect(database_url) as db:
        for name, query in VIOLATIONS.items():
            rows = db.execute(f"SELECT * FROM ({query}) v LIMIT 5").fetchall()
            if rows:
                found[name] = rows
    return found
