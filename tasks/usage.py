"""Looking after the books, on a schedule."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from settings import get_settings
from store import audit
from store.database import MAINTENANCE_ROLE, Database
from tasks.celery_app import app

log = logging.getLogger(__name__)


@app.task(name="usage.audit", queue="maintenance", ignore_result=True)
async def audit_books(unless_within_s: float = 0.0) -> None:
    """Check the invariants on the live database and keep what was found in `audits`.

    Does nothing where an audit was begun within the last `unless_within_s` seconds and has ended well, so that any number of schedulers
    may ask for it. Raises what the database raises, which shows as a failed task; the next run tries again.
    """
    settings = get_settings()
    maintenance = Database(
        settings.maintenance_database_url or settings.database_url, role=MAINTENANCE_ROLE, pool_size=2, application_name="turnline-audit"
    )
    await maintenance.open()
    try:
        last = await audit.last_sound(maintenance)
        if last is not None and (datetime.now(UTC) - last["started_at"]).total_seconds() < unless_within_s:
            return
        report = await audit.run(maintenance, max_s=settings.audit_max_s)
    finally:
        await maintenance.close()
    seen = {"audit_id": str(report.id), "seconds": round(report.seconds, 2), "complete": report.complete, **report.checked}
    if report.findings:
        found = {name: finding.count for name, finding in report.findings.items()}
        log.error("the audit found violations; `turnline audit --last` shows them", extra={**seen, "violations": found})
    else:
        log.info("the audit found no violations", extra=seen)
