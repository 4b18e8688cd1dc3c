"""Totals in the rows of agents and tools, and the audit of the ledger."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from settings import get_settings
from store.analytics import rollups, totals
from store.database import MAINTENANCE_ROLE, Database
from store.operations import audit
from tasks.analytics import add_queued
from tasks.jobs import JobRun, scheduled_job

log = logging.getLogger(__name__)


@scheduled_job("usage.fold_totals", "Writes the totals of agents and tools into their rows.")
async def fold_totals(run: JobRun) -> None:
    """Add the queued facts and write the totals that they changed; with `dry_run`, count both. Safe to run twice, or two at once."""
    if run.dry_run:
        run.count(facts=(await rollups.to_come(run.database))["facts"], totals=await totals.to_come(run.database))
        return
    await add_queued(run)
    run.count(**await totals.fold(run.database))


async def audited_within(unless_within_s: float = 0.0) -> bool:
    """Return whether an audit that ended well began within the last `unless_within_s` seconds.

    So any number of schedulers may send `usage.audit` more often than an audit is due.
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
    return last is not None and (datetime.now(UTC) - last["started_at"]).total_seconds() < unless_within_s


@scheduled_job(
    "usage.audit", "Checks the invariants of the live database, as `turnline audit` does, and keeps the findings.", skip_when=audited_within
)
async def audit_invariants(run: JobRun) -> None:
    """Check the invariants and keep the findings in `audits`; with `dry_run`, count the sessions to look at."""
    if run.dry_run:
        run.count(sessions=await audit.to_come(run.database))
        return
    report = await audit.run(run.database, max_s=run.settings.audit_max_s, on_progress=run.progress)
    run.count(violations=report.violations, **report.checked)
    summary = {"audit_id": str(report.id), "seconds": round(report.seconds, 2), "complete": report.complete, **report.checked}
    if report.findings:
        found = {name: finding.count for name, finding in report.findings.items()}
        log.error("The audit found violations; `turnline audit --last` shows them", extra={**summary, "violations": found})
    else:
        log.info("The audit found no violations", extra=summary)
