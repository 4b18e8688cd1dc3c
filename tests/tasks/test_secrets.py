"""After a key rotation every secret is encrypted with the new key, and the old key can be dropped."""

from __future__ import annotations

import base64
from uuid import UUID

import psycopg
import pytest

from engine.errors import Rejected
from settings import Settings
from store.database import Database
from store.encryption import SecretBox
from tasks import jobs
from tasks.secrets import reseal
from tests.support.factories import tenant

OLD, NEW, GONE = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2, 3))


async def sealed_with(database: Database, url: str, key: str, count: int) -> list[tuple[UUID, UUID]]:
    """Create a tenant with `count` integrations whose secret is encrypted with `key`; return (workspace id, integration id) of each."""
    made = await tenant(database, tools=tuple({"name": f"t{number}", "integration": {}} for number in range(count)))
    with psycopg.connect(url) as db:
        ids = [row[0] for row in db.execute("SELECT id FROM tool_integrations WHERE workspace_id = %s", [made.workspace_id])]
        for integration_id in ids:
            sealed = SecretBox(key).seal(made.workspace_id, integration_id, "token", f"secret of {integration_id}")
            db.execute(
                "UPDATE tool_integrations SET secrets = jsonb_build_object('token', %s::text) WHERE id = %s", [sealed, integration_id]
            )
    return [(made.workspace_id, integration_id) for integration_id in ids]


def decrypted(url: str, ids: tuple[UUID, UUID], keys: str) -> str:
    """Return the secret of (workspace id, integration id)."""
    with psycopg.connect(url) as db:
        row = db.execute("SELECT secrets->>'token' FROM tool_integrations WHERE id = %s", [ids[1]]).fetchone()
    assert row is not None
    return SecretBox(keys).open(*ids, "token", row[0])


async def test_old_key_can_be_dropped_after_a_rotation(database: Database, database_url: str):
    resealed = [*await sealed_with(database, database_url, OLD, 3), *await sealed_with(database, database_url, OLD, 2)]
    (lost,) = await sealed_with(database, database_url, GONE, 1)
    settings = Settings(_env_file=None, DATABASE_URL=database_url, secret_keys=f"{NEW},{OLD}")

    _, would = await jobs.run(reseal, settings=settings, dry_run=True)
    with pytest.raises(Rejected):
        decrypted(database_url, resealed[0], NEW)
    _, did = await jobs.run(reseal, settings=settings)
    _, again = await jobs.run(reseal, settings=settings)

    assert would == did == {"secrets_resealed": 5, "secrets_lost": 1}
    assert again == {"secrets_resealed": 0, "secrets_lost": 1}
    assert [decrypted(database_url, ids, NEW) for ids in resealed] == [f"secret of {ids[1]}" for ids in resealed]
    assert decrypted(database_url, lost, GONE) == f"secret of {lost[1]}"


async def test_reseal_without_a_key_fails(database_url: str):
    settings = Settings(_env_file=None, DATABASE_URL=database_url, secret_keys="")

    with pytest.raises(jobs.JobFailed, match="TURNLINE_SECRET_KEYS is not set"):
        await jobs.run(reseal, settings=settings)
