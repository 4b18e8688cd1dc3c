"""Runs of scheduled jobs, as turnline_maintenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import text

from store.database import Database, dumps

KEPT = 500  # runs of each job; older failed runs are kept for `KEPT_DAYS`
KEPT_DAYS = 30
CUT_OFF_S = 120  # an unfinished run that was not seen for so long counts as killed
AT_WORK_S = 20  # an unfinished run that was seen within so long counts as running

_ONE_BEGINS = "SELECT pg_advisory_xact_lock(7_460_002, hashtext(:job))"
_BEGIN = f"""INSERT INTO job_runs (job, asked_by, dry_run) SELECT :job, :asked_by, :dry_run
WHERE NOT :alone OR NOT EXISTS (SELECT 1 FROM job_runs WHERE job = :job AND finished_at IS NULL AND NOT dry_run
                                    AND seen_at > now() - interval '{AT_WORK_S} seconds')
RETURNING id"""
_SEEN = "UPDATE job_runs SET seen_at = clock_timestamp(), counts = $2::jsonb WHERE id = $1 RETURNING id"
_FINISH = """UPDATE job_runs SET finished_at = clock_timestamp(), seen_at = clock_timestamp(), counts = $2::jsonb, error = $3
WHERE id = $1 RETURNING *"""
_FORGET = f"""
WITH last AS (SELECT id FROM job_runs WHERE job = $1 ORDER BY id DESC OFFSET {KEPT} LIMIT 1),
gone AS (DELETE FROM job_runs WHERE job = $1 AND id <= (SELECT id FROM last)
         AND (finished_at IS NOT NULL AND error IS NULL OR started_at < now() - interval '{KEPT_DAYS} days') RETURNING 1)
SELECT count(*) AS n FROM gone"""
_STATE = f"""CASE WHEN finished_at IS NULL AND seen_at < now() - interval '{CUT_OFF_S} seconds' THEN 'cut off'
    WHEN finished_at IS NULL THEN 'running' WHEN error IS NULL THEN 'done' ELSE 'failed' END"""
_COLUMNS = f"""id, job, asked_by, dry_run, started_at, seen_at, finished_at, counts, error, {_STATE} AS state,
    extract(epoch FROM coalesce(finished_at, seen_at) - started_at)::float8 AS seconds"""
_LATEST = f"""SELECT {_COLUMNS} FROM job_runs WHERE ($1::text IS NULL OR job = $1) AND (NOT $2 OR {_STATE} IN ('failed', 'cut off'))
ORDER BY id DESC LIMIT $3"""
_LAST_OF_EACH = f"""SELECT r.* FROM unnest($1::text[]) AS wanted (job), LATERAL (SELECT {_COLUMNS} FROM job_runs
    WHERE job_runs.job = wanted.job AND NOT dry_run ORDER BY id DESC LIMIT 1) r"""


async def begin(maintenance: Database, job: str, *, asked_by: str, dry_run: bool, alone: bool = False) -> UUID | None:
    """Record that a run of `job` begins, delete old runs, and return the run's id. With `alone`, return None if another run is running."""
    await maintenance.call(_FORGET, job)
    async with maintenance.transaction() as db:
        await db.execute(text(_ONE_BEGINS), {"job": job})
        values = {"job": job, "asked_by": asked_by, "dry_run": dry_run, "alone": alone}
        run_id: UUID | None = await db.scalar(text(_BEGIN), values)
    return run_id


async def seen(maintenance: Database, run_id: UUID, counts: Mapping[str, int]) -> None:
    """Record that the run is still running, with its counts so far."""
    await maintenance.rows(_SEEN, run_id, dumps(dict(counts)))


async def finish(maintenance: Database, run_id: UUID, counts: Mapping[str, int], error: str | None) -> None:
    """Record the end of the run."""
    await maintenance.rows(_FINISH, run_id, dumps(dict(counts)), error)


async def latest(maintenance: Database, job: str | None = None, *, only_bad: bool = False, limit: int = 30) -> list[dict[str, Any]]:
    """Return the latest runs, the newest first, with `state` (running, done, failed, cut off) and `seconds`; `only_bad`: the last two."""
    return await maintenance.rows(_LATEST, job, only_bad, limit)


async def last_of_each(maintenance: Database, jobs: list[str]) -> dict[str, dict[str, Any]]:
    """Return the last run of each of `jobs` by job, without dry runs, in the form of `latest`."""
    return {row["job"]: row for row in await maintenance.rows(_LAST_OF_EACH, jobs)}
