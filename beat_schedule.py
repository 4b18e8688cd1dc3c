"""Beat's schedule as plain data: schedule name -> task name and interval in seconds.

Each task may be sent twice, late, or by several schedulers at once.
"""

from __future__ import annotations

SCHEDULE: dict[str, dict[str, object]] = {
    # Dispatches unclaimed turns. A missed run costs a delay of one interval, never a reply.
    "sweep-turns": {"task": "turns.sweep", "schedule": 5.0, "options": {"queue": "maintenance", "expires": 15.0}},
    # Keeps the totals of agents and tools at most a minute behind.
    "fold-totals": {"task": "usage.fold_totals", "schedule": 30.0, "options": {"queue": "maintenance", "expires": 30.0}},
    "roll-up": {"task": "analytics.roll_up", "schedule": 60.0, "options": {"queue": "maintenance", "expires": 60.0}},
    # A run takes at most five minutes; the next one deletes the rest.
    "clean-up": {"task": "retention.clean_up", "schedule": 900.0, "options": {"queue": "maintenance", "expires": 900.0}},
    "abandon-idle": {"task": "sessions.abandon_idle", "schedule": 300.0, "options": {"queue": "maintenance", "expires": 300.0}},
    "expire-approvals": {"task": "approvals.expire", "schedule": 60.0, "options": {"queue": "maintenance", "expires": 60.0}},
    # Probes the integrations that are due: each once per TURNLINE_HEALTH_EVERY_S, whatever this interval.
    "check-tool-health": {"task": "tools.check_all_health", "schedule": 15.0, "options": {"queue": "maintenance", "expires": 15.0}},
    # Runs once a day. It is sent every hour, because a scheduler that restarts would count a day from its restart.
    "audit": {
        "task": "usage.audit",
        "schedule": 3600.0,
        "kwargs": {"unless_within_s": 23.5 * 3600},
        "options": {"queue": "maintenance", "expires": 3600.0},
    },
}
