"""Copying the totals of agents and tools into their own rows, as turnline_maintenance.

Turns do not write these rows, because all turns of an agent would contend for its row. A change of a total in the rollups marks it as due;
only rows whose value has changed are written.
"""

from __future__ import annotations

from sqlalchemy import text

from store.analytics.rollups import alone
from store.database import Database

BATCH = 500

_AGENTS = f"""
WITH due AS (SELECT * FROM agent_rollups WHERE grain = 'total' AND NOT folded ORDER BY workspace_id, agent_id LIMIT {BATCH}),
said AS (
    SELECT workspace_id, agent_id, sessions_started::integer AS total_sessions, cohort_messages AS total_messages,
        cohort_tokens AS total_tokens_used, cohort_cost_usd AS total_cost,
        CASE WHEN durations > 0 THEN round(duration_s::numeric / durations)::integer END AS average_session_duration, last_active_at
    FROM due),
written AS (
    UPDATE agents a SET total_sessions = s.total_sessions, total_messages = s.total_messages, total_tokens_used = s.total_tokens_used,
        total_cost = s.total_cost, average_session_duration = s.average_session_duration, last_active_at = s.last_active_at
    FROM said s
    WHERE a.workspace_id = s.workspace_id AND a.id = s.agent_id
        AND (a.total_sessions, a.total_messages, a.total_tokens_used, a.total_cost, a.average_session_duration, a.last_active_at)
            IS DISTINCT FROM (s.total_sessions, s.total_messages, s.total_tokens_used, s.total_cost, s.average_session_duration,
                s.last_active_at)
    RETURNING 1),
done AS (
    UPDATE agent_rollups r SET folded = true FROM due
    WHERE r.workspace_id = due.workspace_id AND r.agent_id = due.agent_id AND r.grain = 'total' RETURNING 1)
SELECT (SELECT count(*) FROM done) AS due, (SELECT count(*) FROM written) AS written"""

# A use is a call that succeeded, failed or lost its result; a call that a person denied is not one.
_USES = "succeeded_calls + failed_calls + unknown_calls"
_TOOLS = f"""
WITH due AS (
    SELECT workspace_id, tool_id FROM tool_rollups WHERE grain = 'total' AND NOT folded
    GROUP BY workspace_id, tool_id ORDER BY workspace_id, tool_id LIMIT {BATCH}),
of_agents AS (
    SELECT r.workspace_id, r.tool_id, r.agent_id, {_USES} AS uses, succeeded_calls, last_used_at
    FROM due JOIN tool_rollups r ON r.workspace_id = due.workspace_id AND r.tool_id = due.tool_id AND r.grain = 'total'),
said AS (
    SELECT workspace_id, tool_id, sum(uses)::bigint AS use_count, max(last_used_at) AS last_used_at,
        CASE WHEN sum(uses) > 0 THEN round(100 * sum(succeeded_calls) / sum(uses), 10) END AS success_rate
    FROM of_agents GROUP BY workspace_id, tool_id),
written AS (
    UPDATE tools t SET use_count = s.use_count, success_rate = s.success_rate, last_used_at = s.last_used_at
    FROM said s
    WHERE t.workspace_id = s.workspace_id AND t.id = s.tool_id
        AND (t.use_count, t.success_rate, t.last_used_at) IS DISTINCT FROM (s.use_count, s.success_rate, s.last_used_at)
    RETURNING 1),
assigned AS (
    UPDATE agent_tools t SET use_count = s.uses, last_used_at = s.last_used_at
    FROM of_agents s
    WHERE t.workspace_id = s.workspace_id AND t.agent_id = s.agent_id AND t.tool_id = s.tool_id
        AND (t.use_count, t.last_used_at) IS DISTINCT FROM (s.uses, s.last_used_at)
    RETURNING 1),
done AS (
    UPDATE tool_rollups r SET folded = true FROM due
    WHERE r.workspace_id = due.workspace_id AND r.tool_id = due.tool_id AND r.grain = 'total' AND NOT folded RETURNING 1)
SELECT (SELECT count(*) FROM due) AS due, (SELECT count(*) FROM written) + (SELECT count(*) FROM assigned) AS written"""

_DUE = """SELECT (SELECT count(*) FROM agent_rollups WHERE grain = 'total' AND NOT folded)
    + (SELECT count(*) FROM tool_rollups WHERE grain = 'total' AND NOT folded) AS totals"""


async def fold(maintenance: Database) -> dict[str, int]:
    """Copy every total that is due, and return how many rows of agents and of tools were written, by name."""
    written = {"agents": 0, "tools": 0}
    for name, statement in (("agents", _AGENTS), ("tools", _TOOLS)):
        while True:
            async with maintenance.transaction() as db:
                await alone(db)
                batch = (await db.execute(text(statement))).one()
            written[name] += batch.written
            if batch.due < BATCH:
                break
    return written


async def to_come(maintenance: Database) -> int:
    """Return how many totals are due."""
    return int((await maintenance.call(_DUE))["totals"])
