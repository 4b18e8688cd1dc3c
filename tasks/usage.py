"""Looking after the books, on a schedule."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from settings import get_settings
from store.database import MAINTENANCE_ROLE, Database
from store.operations import audit
from tasks.celery_app import app
from tasks.jobs import Work, job, scheduled

log = logging.getLogger(__name__)


@job("usage.audit", "Checks the books of the live database, as `turnline audit` does, and keeps what it found.")
async def AUDIT(work: Work) -> None:
    """Check the invariants and keep what was found in `audits`; with `dry_run`, count the sessions there are to look at."""
    if work.dry_run:
        work.count(sessions=await audit.to_come(work.database))
        return
    report = await audit.run(work.database, max_s=work.settings.audit_max_s, on_progress=work.progress)
    work.count(violations=report.violations, **report.checked)
    seen = {"audit_id": str(report.id), "seconds": round(report.seconds, 2), "complete": report.complete, **report.checked}
    if report.findings:
        found = {name: finding.count for name, finding in report.findings.items()}
        log.error("the audit found violations; `turnline audit --last` shows them", extra={**seen, "violations": found})
    else:
        log.info("the audit found no violations", extra=seen)


@app.task(name="usage.audit", queue="maintenance", ignore_result=True)
async def audit_books(unless_within_s: float = 0.0) -> None:
    """Check the invariants on the live database and keep what was found in `audits`.

    Does nothing where an audit was begun within the last `unless_within_s` seconds and has ended well, so that any number of schedulers
    may ask for it.
    """
    settings = get_settings()
    maintenance = Database(
        settings.maintenance_database_url or settings.database_url, role=MAINTENANCE_ROLE, pool_size=1, application_name="turnline-audit"
    )
    await maintenance.open()
    try:
        last = await audit.last_sound(maintenance)
    finally:
        await maintenance.close()
    if last is None or (datetime.now(UTC) - last["started_at"]).total_seconds() >= unless_within_s:
        await scheduled(AUDIT)
