"""The invariants of a database in which nothing runs any more: those of every state, and no open work."""

from __future__ import annotations

import psycopg

from store.operations.audit_checks import QUESTIONS

# In addition to the checks of `turnline audit`: no open work, and checks that read messages.
DRAINED = {
    "turns left open": "SELECT id, status FROM turns WHERE status IN ('queued', 'running', 'waiting')",
    "leases left": "SELECT id, lease_owner FROM sessions WHERE lease_owner IS NOT NULL",
    "calls left open": """
        SELECT turn_id, 'model call ' || step FROM model_calls WHERE state = 'reserved'
        UNION ALL SELECT turn_id, tool_call_id FROM tool_calls WHERE state IN ('requested', 'running')""",
    "budgets whose reserved amount differs from the sum of their reservations": """
        SELECT b.id, b.reserved FROM budgets b LEFT JOIN budget_holds h ON h.budget_id = b.id AND (b.period = 'total' OR h.day = b.day)
        GROUP BY b.id HAVING b.reserved <> coalesce(sum(h.amount), 0)""",
    "budget reservations of calls whose outcome is known": """
        SELECT h.turn_id, h.step FROM budget_holds h LEFT JOIN model_calls c USING (turn_id, step, attempt)
        WHERE c.state IS DISTINCT FROM 'unknown'""",
    "failed turns with a reply, or without exactly one status update for each end": """
        SELECT t.id FROM turns t LEFT JOIN events e ON e.turn_id = t.id
        WHERE t.status IN ('failed', 'dead', 'cancelled') GROUP BY t.id
        HAVING t.redrives + 1
                <> count(*) FILTER (WHERE e.kind = 'status_update' AND e.content->>'status' IN ('failed', 'dead', 'cancelled'))
            OR count(*) FILTER (WHERE e.kind = 'agent_message') > 0""",
}
VIOLATIONS = {question.name: question.text(sessions=None, unclaimed_s=0) for question in QUESTIONS} | DRAINED


def violations(database_url: str) -> dict[str, list[tuple[object, ...]]]:
    """Return the violations in a database in which nothing runs any more, by name; at most five rows of each."""
    found: dict[str, list[tuple[object, ...]]] = {}
    with psycopg.connect(database_url) as db:
        for name, query in VIOLATIONS.items():
            rows = db.execute(f"SELECT * FROM ({query}) v LIMIT 5").fetchall()
            if rows:
                found[name] = rows
    return found
