"""`turnline erase`: delete all data of one customer. If it is killed, running it again continues."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import click
from amqp.exceptions import AMQPError
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from cli import broker_purge
from cli.database import operator, run_maintenance_query, safe_url
from cli.errors import SetupError
from cli.options import by_option, json_option, require_settings
from cli.output import join_counts
from engine.errors import NotFound
from settings import Settings
from store.conversations import session_control, sessions
from store.database import Database
from store.retention import cleanup, erasure
from store.retention.erasure import Kept
from tasks import jobs
from tasks.celery_app import make_app

CANCEL_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.3
DELETE_PAUSE = 1.0  # times as long as each batch took, so that deleting uses at most half of the database's time


@click.command()
@click.option("--customer", "customer_id", metavar="ID", required=True, help="The customer_id of their sessions.")
@click.option("--workspace", "workspace_id", metavar="ID", type=click.UUID, help="Required if several workspaces have this customer_id.")
@click.option("--dry-run", is_flag=True, help="Change nothing; count the data that would be deleted.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@by_option
@json_option("Print the receipt as one JSON object. Needs --yes or --dry-run.")
def erase(customer_id: str, workspace_id: UUID | None, dry_run: bool, yes: bool, by: str | None, as_json: bool) -> None:
    """Erase all data of a customer.

    Deletes their sessions with logs, turns, calls and approvals, and their messages in the broker, and prints a receipt. Totals in
    analytics remain; they name nobody. A legal hold on any of the sessions prevents it. If it is interrupted, run it again.

    \b
    Example:
      turnline erase --customer mary@example.com --dry-run
    """
    if as_json and not (yes or dry_run):
        raise click.UsageError("--json needs --yes or --dry-run.")
    settings = require_settings()
    workspace, kept = find_sessions(settings, customer_id, workspace_id)
    if workspace is None:
        click.echo(json.dumps({"sessions": 0}) if as_json else "There is no data of this customer. Nothing was changed.")
        return
    counts = {"sessions": len(kept), "events": sum(session.events for session in kept)}
    if dry_run:
        in_broker = _purge_broker(settings, [session.id for session in kept], dry_run=True)
        if as_json:
            click.echo(json.dumps({"workspace_id": str(workspace), **counts, "broker": in_broker}))
        else:
            click.echo(f"Would erase: {_words(counts)}; in the broker: {_words(in_broker)}.")
        return
    if not yes:
        click.confirm(f"Erase {_words(counts)} from workspace {workspace}? This cannot be undone.", abort=True)
    receipt = erase_customer(settings, customer_id, workspace, by=by)
    click.echo(json.dumps(receipt, default=str) if as_json else _receipt_text(receipt))


def find_sessions(settings: Settings, customer_id: str, workspace_id: UUID | None) -> tuple[UUID | None, list[Kept]]:
    """Return the customer's workspace (None if there is no data of theirs) and their sessions in it.

    Raises:
        SetupError: several workspaces match, a session is on legal hold, or the database does not answer.
    """

    async def query(maintenance: Database) -> tuple[list[Kept], list[UUID]]:
        found = await erasure.find(maintenance, customer_id, workspace_id)
        return found, await erasure.unfinished(maintenance, customer_id, workspace_id)

    kept, unfinished = run_maintenance_query(settings, query)
    workspaces = {session.workspace_id for session in kept} | set(unfinished)
    if len(workspaces) > 1:
        raise SetupError(
            f"{len(workspaces)} workspaces have a customer with this id, perhaps different people. Choose one with --workspace: "
            f"{', '.join(map(str, sorted(workspaces)))}."
        )
    if on_hold := [session for session in kept if session.held_at is not None and not session.going]:
        listed = ", ".join(f"{session.id} (since {session.held_at:%Y-%m-%d})" for session in on_hold)
        raise SetupError(f"Nothing was erased. These sessions are on legal hold: {listed}. `turnline unhold SESSION` lifts a hold.")
    return next(iter(workspaces), None), kept


def erase_customer(settings: Settings, customer_id: str, workspace_id: UUID, *, by: str | None = None) -> dict[str, Any]:
    """Erase the customer from the workspace and return the receipt.

    Ends their sessions, cancels open turns, deletes the sessions, then purges the broker. Sessions that the customer opens meanwhile
    are deleted, too.

    Raises:
        SetupError: a session was put on legal hold meanwhile, a worker did not release a turn in time, or the database or broker does
            not answer. Deleted data stays deleted; run it again to continue.
    """

    async def delete(maintenance: Database) -> tuple[UUID, list[UUID]]:
        erasure_id = await erasure.begin(maintenance, workspace_id, customer_id, by=by or operator())
        application = Database(settings.database_url, pool_size=1, application_name="turnline-erase")
        await application.open()
        try:
            while kept := await erasure.find(maintenance, customer_id, workspace_id):
                await _end_and_mark(settings, application, maintenance, customer_id, workspace_id, erasure_id)
                ids = [session.id for session in kept]
                while await cleanup.left(maintenance, ids):
                    await cleanup.delete_marked(maintenance, ids, rest=DELETE_PAUSE)
                    await asyncio.sleep(0.05)  # another process may be deleting the same sessions
        finally:
            await application.close()
        return erasure_id, await erasure.sessions_of(maintenance, erasure_id)

    erasure_id, deleted = run_maintenance_query(settings, delete)
    purged = _purge_broker(settings, deleted, dry_run=False)
    return run_maintenance_query(settings, lambda maintenance: erasure.finish(maintenance, erasure_id, purged))


async def _end_and_mark(
    settings: Settings, application: Database, maintenance: Database, customer_id: str, workspace_id: UUID, erasure_id: UUID
) -> None:
    """End the customer's sessions, cancel their open turns, and return once all sessions are marked for deletion."""
    deadline = time.monotonic() + CANCEL_TIMEOUT_S
    while unmarked := [session for session in await erasure.find(maintenance, customer_id, workspace_id) if not session.going]:
        if on_hold := next((session for session in unmarked if session.held_at is not None), None):
            raise SetupError(
                f"The session {on_hold.id} was put on legal hold meanwhile and is kept. Lift the hold and run this again to continue."
            )
        if time.monotonic() > deadline:
            raise SetupError(
                f"The session {unmarked[0].id} still has a turn claimed by a worker, so it was not deleted. Run this again to continue."
            )
        if not all(session.counted for session in unmarked):  # deleting them would lose them from analytics
            await _roll_up(settings)
        for session in unmarked:
            try:
                async with application.transaction(workspace_id) as db:
                    await sessions.end(db, session.id, "erased")
                await session_control.cancel_session(application, workspace_id, session.id, by="turnline erase")
            except NotFound:  # another process has marked it
                continue
        await erasure.mark(maintenance, [session.id for session in unmarked], erasure_id)
        if any(not session.going for session in await erasure.find(maintenance, customer_id, workspace_id)):
            await asyncio.sleep(POLL_INTERVAL_S)
    await erasure.mark(maintenance, [session.id for session in await erasure.find(maintenance, customer_id, workspace_id)], erasure_id)


async def _roll_up(settings: Settings) -> None:
    try:
        await jobs.run(jobs.all_jobs()["analytics.roll_up"], settings=settings, asked_by="turnline erase")
    except jobs.JobFailed as error:
        raise SetupError(f"The sessions are not yet counted in analytics, and the roll-up failed: {error}.") from error


def _receipt_text(receipt: Mapping[str, Any]) -> str:
    kinds = ("sessions", "events", "turns", "model_calls", "tool_calls", "approvals")
    return "\n".join(
        [
            f"Erased from workspace {receipt['workspace_id']}: {_words({kind: receipt[kind] for kind in kinds})}.",
            f"Purged from the broker: {_words(receipt['broker'])}.",
            f"SHA-256 of the customer's id: {receipt['customer_sha256']}.",
            f"Started {receipt['started_at']:%Y-%m-%d %H:%M:%S} UTC, finished {receipt['finished_at']:%Y-%m-%d %H:%M:%S} UTC, "
            f"by {receipt['asked_by']}. Receipt {receipt['erasure_id']}.",
        ]
    )


def _words(counts: Mapping[str, int]) -> str:
    return join_counts(counts, "nothing")


def _purge_broker(settings: Settings, session_ids: Sequence[UUID], *, dry_run: bool) -> dict[str, int]:
    """Return how many messages of the sessions were removed from each queue, or with `dry_run` how many are in it."""
    app = make_app(settings)
    try:
        return broker_purge.purge(app, session_ids, dry_run=dry_run)
    except (OSError, OperationalError, RedisError, AMQPError) as error:
        raise SetupError(
            f"The broker {safe_url(settings.broker_url)} does not answer ({type(error).__name__}), so it was not purged. "
            "Run this again once it does, to continue."
        ) from error
    finally:
        app.close()
