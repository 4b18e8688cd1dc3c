"""After a rotation every secret is sealed with the new key, and opens; the old key can be dropped."""

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
from tasks.secrets import RESEAL
from tests.support.factories import tenant

OLD, NEW, GONE = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2, 3))


async def sealed_with(database: Database, url: str, key: str, count: int) -> list[tuple[UUID, UUID]]:
    """Integrations of a new tenant, each with a secret sealed with `key`; as (workspace, integration)."""
    made = await tenant(database, tools=tuple({"name": f"t{number}", "integration": {}} for number in range(count)))
    with psycopg.connect(url) as db:
        ids = [row[0] for row in db.execute("SELECT id FROM tool_integrations WHERE workspace_id = %s", [made.workspace_id])]
        for integration_id in ids:
            sealed = SecretBox(key).seal(made.workspace_id, integration_id, "token", f"secret of {integration_id}")
            db.execute(
                "UPDATE tool_integrations SET secrets = jsonb_build_object('token', %s::text) WHERE id = %s", [sealed, integration_id]
            )
    return [(made.workspace_id, integration_id) for integration_id in ids]


def opened(url: str, where: tuple[UUID, UUID], keys: str) -> str:
    with psycopg.connect(url) as db:
        row = db.execute("SELECT secrets->>'token' FROM tool_integrations WHERE id = %s", [where[1]]).fetchone()
    assert row is not None
    return SecretBox(keys).open(*where, "token", row[0])


async def test_after_a_rotation_the_old_key_can_be_dropped(database: Database, database_url: str):
    places = [*await sealed_with(database, database_url, OLD, 3), *await sealed_with(database, database_url, OLD, 2)]
    (lost,) = await sealed_with(database, database_url, GONE, 1)
    settings = Settings(_env_file=None, DATABASE_URL=database_url, secret_keys=f"{NEW},{OLD}")

    _, would = await jobs.run(RESEAL, settings=settings, dry_run=True)
    with pytest.raises(Rejected):
        opened(database_url, places[0], NEW)
    _, did = await jobs.run(RESEAL, settings=settings)
    _, again = await jobs.run(RESEAL, settings=settings)

    assert would == did == {"secrets_resealed": 5, "secrets_lost": 1}
    assert again == {"secrets_resealed": 0, "secrets_lost": 1}
    assert [opened(database_url, place, NEW) for place in places] == [f"secret of {place[1]}" for place in places]
    assert opened(database_url, lost, GONE) == f"secret of {lost[1]}"


async def test_without_a_key_it_says_so(database_url: str):
    settings = Settings(_env_file=None, DATABASE_URL=database_url, secret_keys="")

    with pytest.raises(jobs.JobFailed, match="TURNLINE_SECRET_KEYS is not set"):
        await jobs.run(RESEAL, settings=settings)
