"""Encrypting stored secrets again with the first key, after a key rotation."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import select, update

from engine.errors import Rejected
from models.tool import ToolIntegrationRow
from store.database import Database
from store.encryption import SecretBox

_PAGE = "SELECT id, workspace_id FROM tool_integrations WHERE id > $1 ORDER BY id LIMIT $2"
_HOW_MANY = "SELECT count(*) AS n FROM tool_integrations"


async def integrations(maintenance: Database, after: UUID, limit: int) -> list[tuple[UUID, UUID]]:
    """Return a page of integrations after the id `after`, as (id, workspace), ordered by id."""
    return [(row["id"], row["workspace_id"]) for row in await maintenance.rows(_PAGE, after, limit)]


async def how_many(maintenance: Database) -> int:
    """Return the number of integrations."""
    return int((await maintenance.call(_HOW_MANY))["n"])


async def reseal(
    database: Database, workspace_id: UUID, integration_ids: Iterable[UUID], box: SecretBox, *, dry_run: bool = False
) -> tuple[int, int]:
    """Encrypt again those secrets of a workspace's integrations that were encrypted with another key than the first.

    Return how many were encrypted again (with `dry_run`: would be), and how many no key of `box` can decrypt; those are left unchanged.
    If an integration is changed at the same time, that change wins.
    """
    sealed, lost = 0, 0
    row = ToolIntegrationRow
    async with database.transaction(workspace_id) as db:
        found = (await db.execute(select(row.id, row.secrets).where(row.id.in_(list(integration_ids))))).all()
        for integration_id, secrets in found:
            fresh, count = dict(secrets), 0
            for name, text in secrets.items():
                if box.is_current(text):
                    continue
                try:
                    fresh[name] = box.seal(workspace_id, integration_id, name, box.open(workspace_id, integration_id, name, text))
                    count += 1
                except Rejected:
                    lost += 1
            if count and not dry_run:
                written = await db.execute(update(row).where(row.id == integration_id, row.secrets == secrets).values(secrets=fresh))
                count = count if written.rowcount else 0
            sealed += count
    return sealed, lost
