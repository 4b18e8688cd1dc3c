"""Key rotation: encrypts every secret at rest anew with the first of TURNLINE_SECRET_KEYS."""

from __future__ import annotations

from itertools import groupby
from uuid import UUID

from engine.errors import Rejected
from store.catalog import secret_rotation
from store.database import Database
from store.encryption import SecretBox
from tasks.jobs import JobRun, manual_job

PAGE = 200


@manual_job("secrets.reseal", "Encrypts the tools' secrets anew with the first of TURNLINE_SECRET_KEYS, so that older keys can be dropped.")
async def reseal(run: JobRun) -> None:
    """Go through all integrations. Counts secrets_resealed, and secrets_lost: TURNLINE_SECRET_KEYS no longer holds their key."""
    keys = run.settings.secret_keys.get_secret_value()
    if not keys:
        raise Rejected("TURNLINE_SECRET_KEYS is not set, so there is no key to encrypt with.")
    box = SecretBox(keys)
    total, done, after = await secret_rotation.how_many(run.database), 0, UUID(int=0)
    database = Database(run.settings.database_url, pool_size=2, application_name="turnline-reseal")
    await database.open()
    try:
        while page := await secret_rotation.integrations(run.database, after, PAGE):
            for workspace_id, group in groupby(sorted(page, key=lambda one: one[1]), key=lambda one: one[1]):
                ids = [integration_id for integration_id, _ in group]
                sealed, lost = await secret_rotation.reseal(database, workspace_id, ids, box, dry_run=run.dry_run)
                run.count(secrets_resealed=sealed, secrets_lost=lost)
            done, after = done + len(page), page[-1][0]
            run.progress(done, total)
    finally:
        await database.close()
