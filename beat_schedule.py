"""When things happen: schedule name -> task name and cadence in seconds, as plain data.

Each entry is harmless to send twice, late, or by several schedulers at once.
"""

from __future__ import annotations

SCHEDULE: dict[str, dict[str, object]] = {
    # Rings turns that nobody carries. A missed run costs a delay of one cadence, never a reply.
    "sweep-turns": {"task": "turns.sweep", "schedule": 5.0, "options": {"queue": "maintenance", "expires": 15.0}},
}
