"""Rotating the keys of secrets at rest: everything sealed anew with the first of TURNLINE_SECRET_KEYS."""

from __future__ import annotations

from itertools import groupby
from uuid import UUID

from engine.errors import Rejected
from store.catalog import secret_rotation
from store.database import Database
from store.encryption import SecretBox
from tasks.jobs import Work, job

PAGE = 200


@job("secrets.reseal", "Seals the tools' secrets anew with the first of TURNLINE_SECRET_KEYS, so that older keys can be dropped.")
async def RESEAL(work: Work) -> None:
    """Walk over all integrations. Counts: secrets_resealed; secrets_lost, whose key TURNLINE_SECRET_KEYS does not hold any more."""
    keys = work.settings.secret_keys.get_secret_value()
    if not keys:
        raise Rejected("TURNLINE_SECRET_KEYS is not set, so there is no key to seal with.")
    box = SecretBox(keys)
    total, done, after = await secret_rotation.how_many(work.database), 0, UUID(int=0)
    database = Database(work.settings.database_url, pool_size=2, application_name="turnline-reseal")
    await database.open()
    try:
        while page := await secret_rotation.integrations(work.database, after, PAGE):
            for workspace_id, group in groupby(sorted(page, key=lambda one: one[1]), key=lambda one: one[1]):
                ids = [integration_id for integration_id, _ in group]
                sealed, lost = await secret_rotation.reseal(database, workspace_id, ids, box, dry_run=work.dry_run)
                work.count(secrets_resealed=sealed, secrets_lost=lost)
            done, after = done + len(page), page[-1][0]
            work.progress(done, total)
    finally:
        await database.close()
