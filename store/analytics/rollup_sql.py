"""The sums of the rollups, defined once, so that rolling facts up and querying facts that are not rolled up give the same.

Each sum is an SQL expression over facts `f`. `f.cohort` is true for a change that counts at the time its session started, and false for
the time at which it happened.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sums:
    """A rollup table: the facts that it counts, the columns beside the agent, and its sums."""

    table: str
    kinds: str
    by: tuple[str, ...]
    numbers: dict[str, str]
    histograms: dict[str, str]
    latest: dict[str, str]
    folded: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of all sums."""
        return (*self.numbers, *self.histograms, *self.latest)

    @property
    def selected(self) -> str:
        """Return all sums over facts, as SQL."""
        return ", ".join(f"{sql} AS {name}" for name, sql in (self.numbers | self.histograms | self.latest).items())

    @property
    def summed(self) -> str:
        """Return all sums over rows of the table, as SQL."""
        sums = {name: f"sum({name})" for name in self.numbers}
        sums |= {name: f"histogram_sum({name})" for name in self.histograms} | {name: f"max({name})" for name in self.latest}
        return ", ".join(f"{sql} AS {name}" for name, sql in sums.items())

    @property
    def added(self) -> str:
        """Return the assignments that add to an existing row, as SQL."""
        sets = [f"{name} = r.{name} + excluded.{name}" for name in self.numbers]
        sets += [f"{name} = histogram_merge(r.{name}, excluded.{name})" for name in self.histograms]
        sets += [f"{name} = greatest(r.{name}, excluded.{name})" for name in self.latest]
        return ", ".join([*sets, *(["folded = false"] if self.folded else [])])


def _sum(what: str, where: str) -> str:
    return f"coalesce(sum({what}) FILTER (WHERE {where}), 0)"


def _times(what: str, where: str) -> str:
    return f"histogram_of({what}, f.n) FILTER (WHERE {where})"


def _calls(kind: str, *states: str) -> dict[str, str]:
    return {"calls": _sum("f.n", f"f.kind = '{kind}'")} | {f"{state}_calls": _sum("f.n", f"f.state = '{state}'") for state in states}


_COHORT = {
    "sessions_started": "started",
    "active_sessions": "active",
    "cohort_completed": "completed",
    "cohort_abandoned": "abandoned",
    "cohort_messages": "messages",
    "cohort_tokens": "tokens",
    "cohort_cost_usd": "cost_usd",
    "cohort_satisfaction": "satisfaction",
    "cohort_rated": "rated",
}
_ENDED = "f.kind = 'ending' AND f.state = 'completed'"

AGENT = Sums(
    "agent_rollups",
    "f.kind IN ('session', 'ending', 'turn', 'model_call', 'tool_call')",
    (),
    numbers={name: _sum(f"f.{column}", "f.cohort") for name, column in _COHORT.items()}
    | {
        "messages": _sum("f.messages_then", "NOT f.cohort"),
        "sessions_completed": _sum("f.n", _ENDED),
        "sessions_abandoned": _sum("f.n", "f.kind = 'ending' AND f.state = 'abandoned'"),
        "durations": _sum("f.n", f"{_ENDED} AND f.duration_s IS NOT NULL"),
        "duration_s": _sum("f.n * f.duration_s", _ENDED),
        **{
            f"turns_{status}": _sum("f.n", f"f.kind = 'turn' AND f.state = '{status}'")
            for status in ("done", "failed", "dead", "cancelled")
        },
        "response_ms": _sum("f.n * f.took_ms::bigint", "f.kind = 'turn'"),
    },
    histograms={
        "response_times": _times("f.took_ms", "f.kind = 'turn'"),
        "wait_times": _times("f.waited_ms", "f.kind = 'turn'"),
        "work_times": _times("f.running_ms", "f.kind = 'turn'"),
    },
    latest={"last_active_at": "max(f.at) FILTER (WHERE NOT f.cohort AND f.kind <> 'ending')"},
    folded=True,
)
MODEL = Sums(
    "model_rollups",
    "f.kind = 'model_call'",
    ("provider", "model"),
    numbers=_calls("model_call", "settled", "failed", "unknown")
    | {"unpriced_calls": _sum("f.n", "f.unpriced")}
    | {f"{kind}_tokens": f"sum(f.n * f.{kind}_tokens::bigint)" for kind in ("input", "cached_input", "cache_write", "output", "reasoning")}
    | {"cost_usd": "sum(f.n * f.cost_usd)"},
    histograms={
        "latencies": _times("f.took_ms", "f.state = 'settled'"),
        "first_token_times": _times("f.first_token_ms", "f.state = 'settled'"),
    },
    latest={},
)
TOOL = Sums(
    "tool_rollups",
    "f.kind = 'tool_call'",
    ("tool_id",),
    numbers=_calls("tool_call", "succeeded", "failed", "denied", "unknown"),
    histograms={"latencies": _times("f.took_ms", "f.state IN ('succeeded', 'failed')")},
    latest={"last_used_at": "max(f.at) FILTER (WHERE f.n = 1 AND f.state <> 'denied')"},
    folded=True,
)
ALL = (AGENT, MODEL, TOOL)

# A session's change counts at two times: when it happened, and when its session started.
BOTH_TIMES = """CROSS JOIN LATERAL (VALUES (src."at", false), (src.started_at, true)) twice ("when", cohort)
    WHERE twice."when" IS NOT NULL"""


def local_date(when: str, zone: str) -> str:
    """Return SQL for the date of a time in a time zone."""
    return f"({when} AT TIME ZONE {zone})::date"


def day_start(when: str, zone: str) -> str:
    """Return SQL for the `start` of that day's row: the moment that Postgres takes for midnight, also if there are two or none.

    If midnight occurs twice, it is the second, so some moments of the day come before it.
    """
    return f"{local_date(when, zone)}::timestamp AT TIME ZONE {zone}"


def within(when: str, zone: str) -> str:
    """Return SQL for whether a time is on a day from `:first` to `:last`, in a time zone.

    It compares dates, because a day need not lie between two midnights, and roughly also times, for the index.
    """
    return f"""{local_date(when, zone)} BETWEEN CAST(:first AS date) AND CAST(:last AS date)
    AND {when} >= CAST(:first AS timestamp) AT TIME ZONE 'UTC' - interval '2 days'
    AND {when} <= CAST(:last AS timestamp) AT TIME ZONE 'UTC' + interval '2 days'"""
