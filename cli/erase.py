"""`turnline erase`: one customer, everywhere. Killed anywhere, it goes on when it is run again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from amqp.exceptions import AMQPError
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from cli import broker_purge
from cli.database import operator, run_query, safe_url
from cli.errors import SetupError
from engine.errors import NotFound
from settings import Settings
from store.conversations import session_control, sessions
from store.database import MAINTENANCE_ROLE, Database
from store.retention import cleanup, erasure
from store.retention.erasure import Kept
from tasks import jobs
from tasks.celery_app import make_app

STOPPED_WITHIN_S = 60.0
LOOK_S = 0.3
REST = 1.0


def look(settings: Settings, customer_id: str, workspace_id: UUID | None) -> tuple[UUID | None, list[Kept]]:
    """The workspace that the customer is to be erased from (None: there is nothing of them), and their sessions in it.

    Raises:
        SetupError: they are in several workspaces, a session of theirs is held, or the database does not answer.
    """

    async def ask(maintenance: Database) -> tuple[list[Kept], list[UUID]]:
        kept = await erasure.find(maintenance, customer_id, workspace_id)
        return kept, await erasure.unfinished(maintenance, customer_id, workspace_id)

    kept, begun = run_query(_maintenance_url(settings), ask, role=MAINTENANCE_ROLE)
    workspaces = {one.workspace_id for one in kept} | set(begun)
    if len(workspaces) > 1:
        raise SetupError(
            f"{len(workspaces)} workspaces have a customer of this id, who need not be one person. Say which with --workspace: "
            f"{', '.join(map(str, sorted(workspaces)))}."
        )
    if held := [one for one in kept if one.held_at is not None and not one.going]:
        said = ", ".join(f"{one.id} (since {one.held_at:%Y-%m-%d})" for one in held)
        raise SetupError(f"Nothing was erased: held are {said}. `turnline unhold SESSION` lets one go.")
    return next(iter(workspaces), None), kept


def waiting(settings: Settings, kept: Sequence[Kept]) -> dict[str, int]:
    """How many messages for these sessions wait in the broker, by where. Raises SetupError where it does not answer."""
    return _take_out(settings, [one.id for one in kept], dry_run=True)


def erase(settings: Settings, customer_id: str, workspace_id: UUID, *, by: str | None = None) -> dict[str, Any]:
    """Erase the customer from the workspace; the receipt.

    Their sessions are ended and what is open in them is cancelled, then they are deleted, then the broker is searched. Should the customer
    open a new one meanwhile, it goes too.

    Raises:
        SetupError: a session was held meanwhile, a worker did not let go, or database or broker do not answer. What is gone is gone; run it
            again to go on.
    """

    async def carry_out(maintenance: Database) -> tuple[UUID, list[UUID]]:
        erasure_id = await erasure.begin(maintenance, workspace_id, customer_id, by=by or operator())
        application = Database(settings.database_url, pool_size=1, application_name="turnline-erase")
        await application.open()
        try:
            while kept := await erasure.find(maintenance, customer_id, workspace_id):
                await _stop(settings, application, maintenance, customer_id, workspace_id, erasure_id)
                while await cleanup.left(maintenance, [one.id for one in kept]):
                    await cleanup.delete_marked(maintenance, [one.id for one in kept], rest=REST)
                    await asyncio.sleep(0.05)  # where somebody else is at one of them
        finally:
            await application.close()
        return erasure_id, await erasure.sessions_of(maintenance, erasure_id)

    erasure_id, gone = run_query(_maintenance_url(settings), carry_out, role=MAINTENANCE_ROLE)
    taken = _take_out(settings, gone, dry_run=False)

    async def finish(maintenance: Database) -> dict[str, Any]:
        return await erasure.finish(maintenance, erasure_id, taken)

    return run_query(_maintenance_url(settings), finish, role=MAINTENANCE_ROLE)


async def _stop(
    settings: Settings, application: Database, maintenance: Database, customer_id: str, workspace_id: UUID, erasure_id: UUID
) -> None:
    """End the customer's sessions, cancel what is open, and mark them; returns once all of them are marked."""
    until = time.monotonic() + STOPPED_WITHIN_S
    while open_ones := [one for one in await erasure.find(maintenance, customer_id, workspace_id) if not one.going]:
        if held := next((one for one in open_ones if one.held_at is not None), None):
            raise SetupError(f"The session {held.id} was held meanwhile, and stays. Let it go and run this again to go on.")
        if time.monotonic() > until:
            raise SetupError(
                f"The session {open_ones[0].id} still has a turn that a worker carries. Nothing of it is gone; run this again to go on."
            )
        if not all(one.counted for one in open_ones):  # older than analytics, which shall not lose them
            await _count(settings)
        for one in open_ones:
            try:
                async with application.transaction(workspace_id) as db:
                    await sessions.end(db, one.id, "erased")
                await session_control.cancel_session(application, workspace_id, one.id, by="turnline erase")
            except NotFound:  # somebody else has marked it
                continue
        ids = [one.id for one in open_ones]
        await erasure.mark(maintenance, ids, erasure_id)
        if any(not one.going for one in await erasure.find(maintenance, customer_id, workspace_id)):
            await asyncio.sleep(LOOK_S)
    await erasure.mark(maintenance, [one.id for one in await erasure.find(maintenance, customer_id, workspace_id)], erasure_id)


async def _count(settings: Settings) -> None:
    try:
        await jobs.run(jobs.all_jobs()["analytics.roll_up"], settings=settings, asked_by="turnline erase")
    except jobs.JobFailed as error:
        raise SetupError(f"Analytics do not have all of the sessions yet, and could not take them in: {error}.") from error


def summary(receipt: dict[str, Any]) -> str:
    """A receipt in sentences."""
    kinds = ("sessions", "events", "turns", "model_calls", "tool_calls", "approvals")
    counts = {kind: receipt[kind] for kind in kinds}
    lines = [
        f"Erased from workspace {receipt['workspace_id']}: {words(counts)}.",
        f"Taken out of the broker: {words(receipt['broker'])}.",
        f"The customer's id has the SHA-256 {receipt['customer_sha256']}.",
        f"Begun at {receipt['started_at']:%Y-%m-%d %H:%M:%S} UTC, done at {receipt['finished_at']:%Y-%m-%d %H:%M:%S} UTC, "
        f"by {receipt['asked_by']}. Receipt {receipt['erasure_id']}.",
    ]
    return "\n".join(lines)


def words(counts: Mapping[str, int]) -> str:
    """Counts as words: "3 sessions, 12 events", or "nothing"."""
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count) or "nothing"


def _take_out(settings: Settings, ids: list[UUID], *, dry_run: bool) -> dict[str, int]:
    app = make_app(settings)
    try:
        return broker_purge.take_out(app, ids, dry_run=dry_run)
    except (OSError, OperationalError, RedisError, AMQPError) as error:
        raise SetupError(
            f"The broker {safe_url(settings.broker_url)} does not answer ({type(error).__name__}), so it was not searched. "
            "Run this again once it does, to go on."
        ) from error
    finally:
        app.close()


def _maintenance_url(settings: Settings) -> str:
    return settings.maintenance_database_url or settings.database_url
