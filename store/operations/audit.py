"""Audit a live database for violated invariants, in bounded time, and store the result.

Sessions are checked in batches, each in one snapshot and its own transaction, so that no long transaction blocks vacuum. First come the
sessions that were active since the previous audit, the newest first, and those that it had no time for. The remaining time goes to a slice
of the older sessions, from where the previous audit stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg.errors import QueryCanceled
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from models.turn import OPEN
from store.database import Database, dumps
from store.operations.audit_checks import QUESTIONS, Question

MAX_S = 60.0
UNCLAIMED_S = 900.0  # longer than a full queue may keep a turn waiting
OVERLAP = timedelta(minutes=5)  # for sessions that committed while the previous audit was reading
PAGE = 5000
BATCH_EVENTS = 20_000
BATCH_SESSIONS = 500
OLDER_SESSIONS = 20_000
OLDER_SHARE = 0.2
QUESTION_S = 9.0  # below the connection's statement_timeout
KEPT_IDS = 20
KEPT_FOR = timedelta(days=400)

_BEGIN = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_ACTIVE = f"""(s.last_activity_at >= :since OR s.lease_owner IS NOT NULL
    OR EXISTS (SELECT 1 FROM turns t WHERE t.session_id = s.id AND t.{OPEN}))"""
_TO_COME = f"SELECT count(*) FROM sessions s WHERE id < :before AND {_ACTIVE}"
# A page of all sessions. `active` marks those to check; the others are skipped.
_RECENT = f"""
WITH page AS (SELECT s.* FROM (SELECT id, event_count, last_activity_at, lease_owner FROM sessions
    WHERE id < :before ORDER BY id DESC LIMIT :page) s)
SELECT s.id, s.event_count, {_ACTIVE} AS active FROM page s ORDER BY s.id DESC"""
_OLDER = "SELECT id, event_count, true AS active FROM sessions WHERE id > :after ORDER BY id LIMIT :page"
_QUARANTINE = """SELECT EXISTS (SELECT 1 FROM information_schema.columns
    WHERE table_schema = current_schema AND table_name = 'sessions' AND column_name = 'quarantined_at') AS seen"""
# Read in the snapshot that is checked: sessions that are being deleted are incomplete.
_PRESENT = "SELECT id FROM sessions WHERE id = ANY (:sessions) AND deleting_at IS NULL"
_COUNTS = """SELECT (SELECT count(*) FROM turns WHERE session_id = ANY (:sessions)) AS turns,
    (SELECT count(*) FROM events WHERE session_id = ANY (:sessions)) AS events,
    (SELECT count(*) FROM model_calls WHERE session_id = ANY (:sessions)) AS model_calls,
    (SELECT count(*) FROM tool_calls WHERE session_id = ANY (:sessions)) AS tool_calls"""

_BEFORE = """SELECT *,
    (checked->'left'->>'since')::timestamptz AS left_since, (checked->'left'->>'before')::uuid AS left_before
FROM audits WHERE finished_at IS NOT NULL AND error IS NULL AND checked->>'scope' = 'recent' ORDER BY id DESC LIMIT 1"""
_OPEN = "INSERT INTO audits (since) VALUES ($1) RETURNING id, started_at"
_CLOSE = """UPDATE audits SET finished_at = clock_timestamp(), complete = $2, older_after = $3, checked = $4::jsonb, violations = $5::jsonb,
    error = $6 WHERE id = $1 RETURNING finished_at"""
_FORGET = "DELETE FROM audits WHERE started_at < now() - $1::interval RETURNING id"
_LAST = "SELECT * FROM audits ORDER BY id DESC LIMIT $1"

FIRST, LAST = UUID(int=0), UUID(int=2**128 - 1)
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Finding:
    """The violations of one question: how many, and the first few `ids` as (session, id or None)."""

    question: Question
    count: int = 0
    ids: list[tuple[UUID, str | None]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Walk:
    """The sessions active since `since` with ids below `before`, to be checked from the newest to the oldest."""

    since: datetime
    before: UUID = LAST


@dataclass(slots=True)
class Report:
    """The result of an audit. `complete`: it checked everything that it had to; otherwise `left` is what it had no time for.

    `unasked`: sessions that are too large to check.
    """

    id: UUID
    started_at: datetime
    since: datetime
    complete: bool = False
    left: Walk | None = None
    older_after: UUID | None = None
    checked: dict[str, int] = field(
        default_factory=lambda: {"sessions": 0, "older_sessions": 0, "turns": 0, "events": 0, "model_calls": 0, "tool_calls": 0}
    )
    findings: dict[str, Finding] = field(default_factory=dict)
    unasked: list[UUID] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def violations(self) -> int:
        """Return the number of all violations."""
        return sum(finding.count for finding in self.findings.values())

    def stored(self) -> dict[str, Any]:
        """Return the violations as they are stored: by name, the count, the invariant, the meaning, the kind of the ids, and the ids."""
        return {
            name: {
                "count": found.count,
                "invariant": found.question.invariant,
                "meaning": found.question.meaning,
                "of": found.question.of,
                "ids": [{"session_id": str(session), "id": what} for session, what in found.ids[:KEPT_IDS]],
            }
            for name, found in self.findings.items()
        }


async def run(
    maintenance: Database,
    *,
    since: datetime | None = None,
    max_s: float = MAX_S,
    unclaimed_s: float = UNCLAIMED_S,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Audit the sessions active since `since`; None: since the last complete run, and a slice of the older sessions.

    It ends after about `max_s` seconds, once the current batch is finished. `on_progress` is called with the sessions checked and the
    sessions in all. The row in `audits` is written before and after; an audit that was killed has no `finished_at`.

    Raises psycopg.Error or DBAPIError if the database cannot be read; the row then says so, if it can still be written.
    """
    before = await last_sound(maintenance)
    walks = [Walk(since or (before["started_at"] - OVERLAP if before else BEGINNING))]
    if since is None and before and before["left_since"]:
        walks.append(Walk(before["left_since"], before["left_before"]))
    opened = await maintenance.call(_OPEN, walks[0].since)
    audit = _Audit(maintenance, Report(opened["id"], opened["started_at"], walks[0].since), max_s, unclaimed_s, on_progress)
    report, scope = audit.report, "recent" if since is None else "since"
    error: str | None = "the audit was stopped before it finished"
    try:
        await audit.recent(walks)
        if since is None and before is not None:
            report.older_after = await audit.older(before["older_after"])
        error = None
    except Exception as raised:
        error = f"{type(raised).__name__}: some checks could not be run"
        raise
    finally:
        report.seconds = audit.elapsed_s
        await _close(maintenance, report, scope, error)
    return report


async def latest(maintenance: Database, limit: int = 1) -> list[dict[str, Any]]:
    """Return the rows of the last `limit` audits, the newest first. `finished_at` is null if one is running or was killed."""
    return await maintenance.rows(_LAST, limit)


async def last_sound(maintenance: Database) -> dict[str, Any] | None:
    """Return the row of the last audit without `since` that finished, or None."""
    rows = await maintenance.rows(_BEFORE)
    return rows[0] if rows else None


async def row(maintenance: Database, audit_id: UUID) -> dict[str, Any]:
    """Return one audit's row. Raises LookupError if there is none."""
    return await maintenance.call("SELECT * FROM audits WHERE id = $1", audit_id)


async def to_come(maintenance: Database) -> int:
    """Return how many sessions the next audit checks before the older ones."""
    before = await last_sound(maintenance)
    async with maintenance.transaction() as db:
        values = {"since": before["started_at"] - OVERLAP if before else BEGINNING, "before": LAST}
        return int((await db.execute(text(_TO_COME), values)).scalar_one())


async def _close(maintenance: Database, report: Report, scope: str, error: str | None) -> None:
    checked: dict[str, Any] = report.checked | {"seconds": round(report.seconds, 2), "scope": scope}
    if report.unasked:
        checked["unasked"] = [str(session) for session in report.unasked[:KEPT_IDS]]
    if report.left is not None:
        checked["left"] = {"since": report.left.since.isoformat(), "before": str(report.left.before)}
    await maintenance.call(_CLOSE, report.id, report.complete, report.older_after, dumps(checked), dumps(report.stored()), error)
    await maintenance.rows(_FORGET, KEPT_FOR)


class _Audit:
    """A running audit."""

    def __init__(
        self, maintenance: Database, report: Report, max_s: float, unclaimed_s: float, on_progress: Callable[[int, int], None]
    ) -> None:
        self.report = report
        self._database, self._unclaimed_s, self._on_progress = maintenance, unclaimed_s, on_progress
        self._began = time.monotonic()
        self._max_s = max_s
        self._total = 0
        self._statements: list[tuple[Question, str]] = []

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    async def recent(self, walks: Sequence[Walk]) -> None:
        """Check the sessions of `walks`, one after the other, and leave a part of the time for older ones."""
        async with self._database.transaction() as db:
            seen = (await db.execute(text(_QUARANTINE))).scalar_one()
            for walk in walks:
                self._total += (await db.execute(text(_TO_COME), {"since": walk.since, "before": walk.before})).scalar_one()
        for question in QUESTIONS:
            sql = question.text(sessions=":sessions", unclaimed_s=self._unclaimed_s, quarantine=seen)
            self._statements.append((question, f"SELECT v.*, count(*) OVER () AS total FROM ({sql}) v LIMIT {KEPT_IDS}"))
        for number, walk in enumerate(walks):
            reached = await self._recent(walk)
            if reached is not None:  # this walk and those after it, stored as one walk that covers them all
                left = [Walk(walk.since, reached), *walks[number + 1 :]]
                self.report.left = Walk(min(one.since for one in left), max(one.before for one in left))
                return
        self.report.complete = True

    async def _recent(self, walk: Walk) -> UUID | None:
        """Check `walk`. Return the last session checked if the time ran out, or None at the end of the walk."""
        before = walk.before
        while page := await self._page(_RECENT, before=before, since=walk.since):
            for batch in _batches(page):
                if self.elapsed_s > self._max_s * (1 - OLDER_SHARE):
                    return before
                await self._look_at(batch)
                self.report.checked["sessions"] += len(batch)
                self._on_progress(self.report.checked["sessions"], self._total)
                before = batch[-1]
            before = page[-1]["id"]
        return None

    async def older(self, after: UUID | None) -> UUID | None:
        """Check a slice of all sessions, beginning after `after`. Return the slice's last session, or None after the last of all."""
        left = OLDER_SESSIONS
        while page := await self._page(_OLDER, after=after or FIRST):
            for batch in _batches(page[:left]):
                if self.elapsed_s > self._max_s:
                    return after
                await self._look_at(batch)
                self.report.checked["older_sessions"] += len(batch)
                left -= len(batch)
                after = batch[-1]
            if left <= 0:
                return after
        return None

    async def _page(self, query: str, **values: object) -> Sequence[Any]:
        async with self._database.transaction() as db:
            return (await db.execute(text(query), {"page": PAGE, **values})).mappings().all()

    async def _look_at(self, batch: list[UUID]) -> None:
        """Run every check on `batch` in one snapshot. A check that takes too long is repeated on halves of the batch."""
        try:
            async with self._database.transaction() as db:
                await db.execute(text(_BEGIN))
                await db.execute(text(f"SET LOCAL statement_timeout = '{QUESTION_S:g}s'"))
                present = list((await db.execute(text(_PRESENT), {"sessions": batch})).scalars())
                found = await self._ask(db, present)
                counts = (await db.execute(text(_COUNTS), {"sessions": present})).mappings().one()
        except DBAPIError as error:
            if not isinstance(error.orig, QueryCanceled):
                raise
            if len(batch) == 1:
                self.report.unasked += batch
                return
            for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                await self._look_at(half)
            return
        for name, count in counts.items():
            self.report.checked[name] += count
        for question, total, ids in found:
            finding = self.report.findings.setdefault(question.name, Finding(question))
            finding.count += total
            finding.ids += ids[: KEPT_IDS - len(finding.ids)]

    async def _ask(self, db: AsyncConnection, batch: list[UUID]) -> list[tuple[Question, int, list[tuple[UUID, str | None]]]]:
        found = []
        for question, statement in self._statements:
            rows = (await db.execute(text(statement), {"sessions": batch})).all()
            if rows:
                found.append((question, int(rows[0].total), [(row.session_id, row.id) for row in rows]))
        return found


def _batches(page: Sequence[Any]) -> Iterator[list[UUID]]:
    """Yield the active sessions of a page in batches of at most so many events."""
    batch: list[UUID] = []
    events = 0
    for row in page:
        if not row["active"]:
            continue
        if batch and (len(batch) == BATCH_SESSIONS or events + row["event_count"] > BATCH_EVENTS):
            yield batch
            batch, events = [], 0
        batch.append(row["id"])
        events += row["event_count"]
    if batch:
        yield batch
