"""Activity of the last minutes over all workspaces, for operators. Read as turnline_maintenance."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import psycopg

# Read by turn id, which is ordered by opening time: of the last quarter of an hour, at most 20,000 turns and 50,000 calls.
_ENDED = """
WITH latest AS (
    SELECT status, opened_at, settled_at FROM turns WHERE id > (SELECT uuidv7(interval '-15 minutes')) ORDER BY id DESC LIMIT 20000),
ended AS (SELECT status, settled_at - opened_at AS took FROM latest WHERE settled_at > now() - interval '1 minute')
SELECT (SELECT coalesce(jsonb_object_agg(status, n), '{}') FROM (SELECT status, count(*) AS n FROM ended GROUP BY status) by_status),
    extract(epoch FROM percentile_disc(0.5) WITHIN GROUP (ORDER BY took))::float8,
    extract(epoch FROM percentile_disc(0.95) WITHIN GROUP (ORDER BY took))::float8
FROM ended"""
_SPENT = """
SELECT coalesce(sum(cost_usd), 0) FROM (
    SELECT cost_usd, settled_at FROM model_calls WHERE turn_id > (SELECT uuidv7(interval '-15 minutes')) ORDER BY turn_id DESC LIMIT 50000
) latest WHERE settled_at > now() - interval '10 minutes'"""


@dataclass(frozen=True, slots=True)
class Activity:
    """Turns that ended in the last minute, by status, the median and 95th percentile of their duration, and cost per hour."""

    ended: dict[str, int]
    p50_s: float | None
    p95_s: float | None
    usd_per_hour: Decimal


def read(db: psycopg.Connection) -> Activity:
    """Read the activity on a connection that acts as turnline_maintenance. Raises psycopg.Error."""
    ended = db.execute(_ENDED).fetchone()
    spent = db.execute(_SPENT).fetchone()
    assert ended is not None  # noqa: S101 - aggregates return a row
    assert spent is not None  # noqa: S101
    return Activity(ended[0], ended[1], ended[2], spent[0] * 6)
