"""Adding facts to the rollups. All of it as turnline_maintenance.

A change that analytics count leaves a fact in `usage_facts` in the transaction that makes it (a trigger, so that no path is without one).
A batch of facts is taken away and added to the sums in one statement: a fact is in the queue or in the sums, and never in both or in
neither, whoever is killed when. Nothing is found by comparing clocks, so a transaction that commits late is not passed over: its facts
are there once it is. Nothing is made anew from rows that retention may have taken by then: what is deleted stays counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from store.database import Database
from store.rollup_sums import ALL, BOTH_TIMES, Sums, day_start

BATCH = 4000
SESSIONS = 200  # whose rows are held at a time
LOCK = "SELECT pg_advisory_xact_lock(7_460_001)"  # one at a time adds up or folds; a second one waits for the batch, not for the run

_QUEUED = f"SELECT ARRAY(SELECT ctid FROM usage_facts LIMIT {BATCH})::text[] AS places"
_ANSWERED = """SELECT coalesce(array_agg(DISTINCT session_id), '{}') AS ids
FROM usage_facts WHERE ctid = ANY (CAST(:places AS tid[])) AND kind = 'turn'"""
# A session that somebody holds is left out, and told.
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

_CUT_ELSEWHERE = """SELECT r.workspace_id, r.agent_id, w.timezone FROM agent_rollups r JOIN workspaces w ON w.id = r.workspace_id
WHERE r.grain = 'total' AND r.timezone <> w.timezone AND (r.workspace_id, r.agent_id) > (:workspace, :agent)
ORDER BY r.workspace_id, r.agent_id LIMIT 1"""
_SETTLE_ZONE = """UPDATE agent_rollups SET timezone = :zone
WHERE workspace_id = :workspace AND agent_id = :agent AND grain = 'total' AND timezone <> :zone RETURNING 1"""


def _cutting(sums: Sums) -> tuple[str, str]:
    by = "".join(f", {column}" for column in sums.by)
    of_agent = "workspace_id = :workspace AND agent_id = :agent"
    return (
        f"DELETE FROM {sums.table} WHERE {of_agent} AND grain = 'day'",
        f"""INSERT INTO {sums.table} (workspace_id, agent_id, grain, start{by}, {", ".join(sums.columns)})
        SELECT workspace_id, agent_id, 'day', {day_start("start", ":zone")}{by}, {sums.summed}
        FROM {sums.table} WHERE {of_agent} AND grain = 'quarter'
        GROUP BY workspace_id, agent_id, {day_start("start", ":zone")}{by}""",
    )


async def note_older_sessions(maintenance: Database, limit: int = SESSIONS) -> int:
    """Note what sessions came to that are older than the noting of facts; how many were left to be noted and now are, `limit` at most."""
    return int((await maintenance.call(_OLDER, limit))["sessions"])


async def add(maintenance: Database, *, facts_so_far: Callable[[int], None] = lambda facts: None) -> tuple[int, int]:
    """Add every fact that is queued to the rollups, batch by batch; how many facts, and how often a sum was written.

    Returns once what was queued as it began is added, by it or by another; turns of a session that somebody holds just then are left to
    the next run. `facts_so_far` is told after each batch.
    """
    facts, sums = 0, 0
    left = int((await maintenance.call(_PENDING))["facts"])
    while left > 0:
        async with maintenance.transaction() as db:
            await db.execute(text(LOCK))
            places = await db.scalar(text(_QUEUED))
            if not places:
                return facts, sums
            # Before its facts are gone: a run that is killed in between does this once more.
            busy = await _average_responses(maintenance, db, places)
            added = (await db.execute(text(_ADD), {"places": places, "busy": busy})).one()
        facts, sums, left = facts + added.facts, sums + added.sums, left - len(places)
        facts_so_far(facts)
    return facts, sums


async def _average_responses(maintenance: Database, db: AsyncConnection, places: list[str]) -> list[UUID]:
    """Bring up to date what sessions say of their turns; those that somebody holds, which were left as they are."""
    busy: list[UUID] = []
    ids: list[UUID] = await db.scalar(text(_ANSWERED), {"places": places}) or []
    for first in range(0, len(ids), SESSIONS):
        async with maintenance.transaction() as apart:  # so that turns wait for these rows only as long as this takes
            busy += await apart.scalar(text(_AVERAGES), {"ids": ids[first : first + SESSIONS]}) or []
    return busy


async def cut_days_anew(maintenance: Database) -> int:
    """Cut the days of agents whose workspace has got another time zone, from quarters of an hour; how many agents."""
    place: dict[str, Any] = {"workspace": UUID(int=0), "agent": UUID(int=0)}
    agents = 0
    while True:
        async with maintenance.transaction() as db:
            await db.execute(text(LOCK))
            found = (await db.execute(text(_CUT_ELSEWHERE), place)).one_or_none()
            if found is None:
                return agents
            place = {"workspace": found.workspace_id, "agent": found.agent_id}
            zone = {"zone": found.timezone}
            await db.execute(text("SET LOCAL statement_timeout = '5min'"))  # a busy agent's years, once
            for sums in ALL:
                delete, insert = _cutting(sums)
                await db.execute(text(delete), place)
                await db.execute(text(insert), place | zone)
            await db.execute(text(_SETTLE_ZONE), place | zone)
        agents += 1


async def to_come(maintenance: Database) -> dict[str, int]:
    """What is queued: facts, and sessions that are not noted yet."""
    return dict(await maintenance.call(_PENDING))
