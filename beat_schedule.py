"""When things happen: schedule name -> task name and cadence in seconds, as plain data.

Each entry is harmless to send twice, late, or by several schedulers at once.
"""

from __future__ import annotations

SCHEDULE: dict[str, dict[str, object]] = {
    # Rings turns that nobody carries. A missed run costs a delay of one cadence, never a reply.
    "sweep-turns": {"task": "turns.sweep", "schedule": 5.0, "options": {"queue": "maintenance", "expires": 15.0}},
    # What agents and tools came to is shown at most a minute behind.
    "fold-totals": {"task": "usage.fold_totals", "schedule": 30.0, "options": {"queue": "maintenance", "expires": 30.0}},
    "roll-up": {"task": "analytics.roll_up", "schedule": 60.0, "options": {"queue": "maintenance", "expires": 60.0}},
    # A run takes five minutes at most; what it leaves, the next one deletes.
    "clean-up": {"task": "retention.clean_up", "schedule": 900.0, "options": {"queue": "maintenance", "expires": 900.0}},
    "abandon-idle": {"task": "sessions.abandon_idle", "schedule": 300.0, "options": {"queue": "maintenance", "expires": 300.0}},
    "expire-approvals": {"task": "approvals.expire", "schedule": 60.0, "options": {"queue": "maintenance", "expires": 60.0}},
    # Those that are due: each is asked once in TURNLINE_HEALTH_EVERY_S, whatever this cadence.
    "check-tool-health": {"task": "tools.check_all_health", "schedule": 15.0, "options": {"queue": "maintenance", "expires": 15.0}},
    # Once a day; asked for more often, so that a scheduler that was restarted meanwhile does not count its day from there.
    "audit": {
        "task": "usage.audit",
        "schedule": 3600.0,
        "kwargs": {"unless_within_s": 23.5 * 3600},
        "options": {"queue": "maintenance", "expires": 3600.0},
    },
}
