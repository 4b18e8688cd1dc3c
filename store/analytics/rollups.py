"""Rolling facts up, as turnline_maintenance.

A trigger inserts a fact into `usage_facts` in the transaction that makes a change which analytics count. One statement deletes a batch of
facts and adds them to the sums, so that a fact is in exactly one of the two, even if a process is killed. Facts are not found by comparing
clocks, so a transaction that commits late is not missed. Sums are never recomputed from rows that retention may have deleted, so deleted
sessions stay counted.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from store.analytics.rollup_sql import ALL, BOTH_TIMES, Sums, day_start, local_date, within
from store.database import Database

BATCH = 4000
SESSIONS = 200  # rows locked at a time
DAYS = 31  # days recomputed at a time
# Only one transaction at a time rolls up, recomputes days or copies totals. Another waits for the batch, not for the whole run, and may
# wait longer than other statements.
_ALONE = (
    "SELECT set_config('lock_timeout', '60s', true), set_config('statement_timeout', '60s', true)",
    "SELECT pg_advisory_xact_lock(7_460_001)",
    "SET LOCAL lock_timeout TO DEFAULT",
    "SET LOCAL statement_timeout TO DEFAULT",
)

_QUEUED = f"SELECT ARRAY(SELECT ctid FROM usage_facts LIMIT {BATCH})::text[] AS places"
_ANSWERED = """SELECT coalesce(array_agg(DISTINCT session_id), '{}') AS ids
FROM usage_facts WHERE ctid = ANY (CAST(:places AS tid[])) AND kind = 'turn'"""
# A session whose row is locked is left out and returned.
_AVERAGES = """
WITH held AS (SELECT id, average_response_time FROM sessions WHERE id = ANY (:ids) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED),
written AS (
    UPDATE sessions SET average_response_time = told.average
    FROM held, LATERAL (SELECT round(avg(ms_between(t.opened_at, t.settled_at)))::integer AS average FROM turns t
                        WHERE t.session_id = held.id AND t.status = 'done') told
    WHERE sessions.id = held.id AND held.average_response_time IS DISTINCT FROM told.average)
SELECT coalesce(array_agg(id), '{}') FROM sessions WHERE id = ANY (:ids) AND NOT EXISTS (SELECT 1 FROM held WHERE held.id = sessions.id)"""

# Days are of the time zone that the agent's are cut in: its total's, or the workspace's where it has none yet.
_GRAINS = f"""CROSS JOIN LATERAL (VALUES ('quarter', date_bin('15 minutes', f."when", '2000-01-01 00:00Z')),
        ('day', {day_start('f."when"', "f.zone")}), ('total', '-infinity'::timestamptz)) g (grain, start)"""


def _adding(sums: Sums) -> str:
    by = "".join(f", f.{column}" for column in sums.by)
    zone = ("timezone", "CASE g.grain WHEN 'total' THEN max(f.zone) END") if sums.table == "agent_rollups" else None
    names = ", ".join(("workspace_id", "agent_id", "grain", "start", *sums.by, *sums.columns, *([zone[0]] if zone else [])))
    return f"""INSERT INTO {sums.table} AS r ({names})
    SELECT f.workspace_id, f.agent_id, g.grain, g.start{by}, {sums.selected}{f", {zone[1]}" if zone else ""}
    FROM facts f {_GRAINS}
    WHERE {sums.kinds}
    GROUP BY f.workspace_id, f.agent_id, g.grain, g.start{by}
    ON CONFLICT ({", ".join(("workspace_id", "agent_id", "grain", "start", *sums.by))}) DO UPDATE SET {sums.added}
    RETURNING 1"""


_ADD = f"""
WITH taken AS (
    DELETE FROM usage_facts WHERE ctid = ANY (CAST(:places AS tid[])) AND NOT (kind = 'turn' AND session_id = ANY (:busy)) RETURNING *),
facts AS MATERIALIZED (
    SELECT src.*, twice."when", twice.cohort, coalesce(r.timezone, w.timezone) AS zone
    FROM (SELECT taken.* FROM taken) src
    JOIN workspaces w ON w.id = src.workspace_id
    LEFT JOIN agent_rollups r ON r.workspace_id = src.workspace_id AND r.agent_id = src.agent_id AND r.grain = 'total'
    {BOTH_TIMES}),
{", ".join(f"{sums.table}_added AS ({_adding(sums)})" for sums in ALL)}
SELECT (SELECT count(*) FROM taken) AS facts, {" + ".join(f"(SELECT count(*) FROM {sums.table}_added)" for sums in ALL)} AS sums
"""
_PENDING = "SELECT count(*) AS facts, (SELECT count(*) FROM sessions WHERE NOT counted) AS sessions FROM usage_facts"

_OLDER = "SELECT note_older_sessions($1) AS sessions"

_OF_AGENT = "workspace_id = :workspace AND agent_id = :agent"
_TO_CUT = """SELECT a.workspace_id AS workspace, a.id AS agent FROM agents a JOIN workspaces w ON w.id = a.workspace_id
JOIN agent_rollups r ON r.workspace_id = a.workspace_id AND r.agent_id = a.id
WHERE r.grain = 'total' AND (r.timezone <> w.timezone OR r.days_cut_to IS NOT NULL) ORDER BY a.workspace_id, a.id"""
_PLACE = """SELECT w.timezone AS zone, r.timezone <> w.timezone AS elsewhere, r.days_cut_to FROM agent_rollups r
JOIN workspaces w ON w.id = r.workspace_id
WHERE r.workspace_id = :workspace AND r.agent_id = :agent AND r.grain = 'total'"""
_NEXT = f"""SELECT min({local_date("start", ":zone")}) FROM agent_rollups
WHERE {_OF_AGENT} AND grain = 'quarter' AND {local_date("start", ":zone")} >= :cut_to
    AND start >= CAST(:cut_to AS timestamp) AT TIME ZONE 'UTC' - interval '2 days'"""
_CUT_TO = f"UPDATE agent_rollups SET timezone = :zone, days_cut_to = :cut_to WHERE {_OF_AGENT} AND grain = 'total'"


def _cutting(sums: Sums) -> tuple[str, str]:
    by = "".join(f", {column}" for column in sums.by)
    days = within("start", ":zone")
    return (
        f"DELETE FROM {sums.table} WHERE {_OF_AGENT} AND grain = 'day' AND {days}",
        f"""INSERT INTO {sums.table} (workspace_id, agent_id, grain, start{by}, {", ".join(sums.columns)})
        SELECT workspace_id, agent_id, 'day', {day_start("start", ":zone")}{by}, {sums.summed}
        FROM {sums.table} WHERE {_OF_AGENT} AND grain = 'quarter' AND {days}
        GROUP BY workspace_id, agent_id, {day_start("start", ":zone")}{by}""",
    )


async def alone(db: AsyncConnection) -> None:
    """Lock out other transactions that roll up, recompute days or copy totals, until this one ends. Waits up to a minute."""
    for statement in _ALONE:
        await db.execute(text(statement))


async def note_older_sessions(maintenance: Database, limit: int = SESSIONS) -> int:
    """Record facts of sessions from before facts were recorded, at most `limit`, and return how many."""
    return int((await maintenance.call(_OLDER, limit))["sessions"])


async def add(maintenance: Database, *, facts_so_far: Callable[[int], None] = lambda facts: None) -> tuple[int, int]:
    """Add all queued facts to the rollups, in batches. Return the number of facts and of writes to sums.

    It returns once the facts that were queued when it began are added, by it or by another run. Turns of a session whose row is locked
    are left to the next run. `facts_so_far` is called after each batch.
    """
    facts, sums = 0, 0
    left = int((await maintenance.call(_PENDING))["facts"])
    while left > 0:
        async with maintenance.transaction() as db:
            await alone(db)
            places = await db.scalar(text(_QUEUED))
            if not places:
                return facts, sums
            # Before its facts are deleted: if the run is killed in between, the next one repeats this.
            busy = await _average_responses(maintenance, db, places)
            added = (await db.execute(text(_ADD), {"places": places, "busy": busy})).one()
        facts, sums, left = facts + added.facts, sums + added.sums, left - len(places)
        facts_so_far(facts)
    return facts, sums


async def _average_responses(maintenance: Database, db: AsyncConnection, places: list[str]) -> list[UUID]:
    """Update the averages of sessions whose turns ended, and return the sessions that were skipped because they are locked."""
    busy: list[UUID] = []
    ids: list[UUID] = await db.scalar(text(_ANSWERED), {"places": places}) or []
    for first in range(0, len(ids), SESSIONS):
        async with maintenance.transaction() as apart:  # so that turns wait for these rows only as long as this takes
            busy += await apart.scalar(text(_AVERAGES), {"ids": ids[first : first + SESSIONS]}) or []
    return busy


async def cut_days_anew(maintenance: Database) -> int:
    """Recompute the days of agents whose workspace has a new time zone, from quarters of an hour. Return how many agents."""
    agents = 0
    for agent in await maintenance.rows(_TO_CUT):
        while (settled := await cut_some_days(maintenance, agent["workspace"], agent["agent"])) is False:
            pass
        agents += settled is True
    return agents


async def cut_some_days(maintenance: Database, workspace_id: UUID, agent_id: UUID) -> bool | None:
    """Recompute the next `DAYS` days of an agent. Return whether they were the last, or None if there was nothing to do.

    Facts that are added meanwhile go to days of the new zone; a day that is not recomputed yet is replaced when its turn comes.
    """
    agent: dict[str, Any] = {"workspace": workspace_id, "agent": agent_id}
    async with maintenance.transaction() as db:
        await alone(db)
        found = (await db.execute(text(_PLACE), agent)).one_or_none()
        if found is None or not (found.elsewhere or found.days_cut_to):
            return None
        agent |= {"zone": found.zone, "cut_to": date.min if found.elsewhere else found.days_cut_to}
        if found.elsewhere:
            for sums in ALL:
                await db.execute(text(f"DELETE FROM {sums.table} WHERE {_OF_AGENT} AND grain = 'day'"), agent)
        first: date | None = await db.scalar(text(_NEXT), agent)
        if first is not None:
            days = {"first": first, "last": first + timedelta(days=DAYS - 1)}
            for sums in ALL:
                for statement in _cutting(sums):
                    await db.execute(text(statement), agent | days)
        await db.execute(text(_CUT_TO), agent | {"cut_to": first and first + timedelta(days=DAYS)})
        return first is None


async def to_come(maintenance: Database) -> dict[str, int]:
    """Return the number of queued facts, and of sessions that are not counted yet."""
    return dict(await maintenance.call(_PENDING))
