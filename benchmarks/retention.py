"""Measure how much the retention job slows down turns: p99 of a turn's database time during the job, relative to before and after.

    python -m benchmarks.retention --events 1000000      (`make retention-bench`)

Postgres with production durability and a steady stream of turns (accepted, claimed, answered: three commits each): first alone, then while
`turnline jobs run retention.clean_up` deletes old sessions, then alone again. Exits with 1 if the ratio exceeds --most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable

import psycopg

from benchmarks.rig import percentile, rig
from store.conversations import intake
from store.database import Database
from tests.support.claims import ANSWERED, claimed
from tests.support.factories import Tenant, tenant
from tests.support.past_sessions import filled
from tests.support.stack import Stack

TURNS_PER_SESSION = 5  # of four events each
BATCH = 1000
SESSIONS = 200  # in which turns run


async def old_sessions(database: Database, stack: Stack, events: int) -> Tenant:
    """Create old sessions with about `events` events, a tenth of them in one session."""
    sessions = max(1, int(events * 0.9) // (4 * TURNS_PER_SESSION))
    made = await tenant(database, sessions=sessions + 1)
    for first in range(0, sessions, BATCH):
        batch = made.session_ids[1:][first : first + BATCH]
        await asyncio.to_thread(filled, stack.database_url, made, batch, turns=TURNS_PER_SESSION)
    long = max(1, (events - 4 * TURNS_PER_SESSION * sessions) // 4)
    await asyncio.to_thread(filled, stack.database_url, made, made.session_ids[:1], turns=long)
    with psycopg.connect(stack.database_url, autocommit=True) as db:
        db.execute("VACUUM ANALYZE")
        db.execute("CHECKPOINT")
    return made


async def run_turn(database: Database, made: Tenant, number: int) -> float:
    """Run one turn from its message to its reply; return the seconds spent in the database."""
    began = time.perf_counter()
    session_id = made.session_ids[number % SESSIONS]
    accepted = await intake.accept(database, made.workspace_id, session_id, "Is order 41 paid?")
    if accepted.to_dispatch is not None:
        held = await claimed(database, accepted.turn_id, owner=f"w{number}")
        await held.write(ANSWERED)
    return time.perf_counter() - began


async def stream(database: Database, made: Tenant, rate: float, keep_running: Callable[[float], bool], numbers: list[int]) -> list[float]:
    """Start turns at a steady rate while `keep_running(seconds_so_far)`; return the seconds of each, from when it was due."""
    began, seconds = time.perf_counter(), list[float]()

    async def one(number: int, due: float) -> None:
        late = time.perf_counter() - due
        seconds.append(late + await run_turn(database, made, number))

    count = 0
    async with asyncio.TaskGroup() as running:  # a turn that fails ends the measurement
        while keep_running(time.perf_counter() - began):
            due = began + count / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            running.create_task(one(numbers[0], due))
            numbers[0] += 1
            count += 1
    return seconds


async def measure(stack: Stack, events: int, rate: float, quiet_s: float) -> dict[str, object]:
    """Return the figures of one run."""
    database = Database(stack.database_url, pool_size=8)
    await database.open()
    began = time.monotonic()
    await old_sessions(database, stack, events)
    made = await tenant(database, sessions=SESSIONS)
    print(f"{events:,} old events created in {time.monotonic() - began:.0f} s", file=sys.stderr)
    numbers = [0]
    await stream(database, made, rate, lambda so_far: so_far < 5, numbers)  # caches and plans

    before = await stream(database, made, rate, lambda so_far: so_far < quiet_s, numbers)
    job = stack.start("-m", "cli.main", "jobs", "run", "retention.clean_up", "--json")
    # The start of the process is not counted, because in production a running worker does the job.
    await stream(database, made, rate, lambda _: not stack.one("SELECT count(*) FROM job_runs") and job.popen.poll() is None, numbers)
    began = time.monotonic()
    during = await stream(database, made, rate, lambda _: job.popen.poll() is None, numbers)
    clean_up_s = time.monotonic() - began
    counts = json.loads(job.log.read_text().strip().splitlines()[-1])["counts"]
    after = await stream(database, made, rate, lambda so_far: so_far < quiet_s, numbers)
    await database.close()

    quiet = percentile(before + after, 0.99)
    figures: dict[str, object] = {"events_deleted": counts["events_deleted"], "sessions_deleted": counts["sessions_deleted"]}
    figures |= {"clean_up_s": round(clean_up_s, 1), "turns_per_s": rate}
    for name, times in (("before", before), ("during", during), ("after", after)):
        figures |= {f"p50_{name}_ms": round(percentile(times, 0.5) * 1000, 1), f"p99_{name}_ms": round(percentile(times, 0.99) * 1000, 1)}
    return figures | {"ratio": round(percentile(during, 0.99) / quiet, 2)}


def main() -> None:
    """Measure and print the figures; exit with 1 if the ratio is too high."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000, help="events to delete (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=40.0, help="turns per second (default: %(default)s)")
    parser.add_argument(
        "--quiet-s", type=float, default=30.0, help="seconds to measure without the job, before and after (default: %(default)s)"
    )
    parser.add_argument("--most", type=float, default=1.5, help="highest ratio that passes (default: %(default)s)")
    options = parser.parse_args()
    with rig(TURNLINE_RETENTION_MAX_S="600") as (stack, _, _):
        figures = asyncio.run(measure(stack, options.events, options.rate, options.quiet_s))
    for name, value in figures.items():
        print(f"{name:18} {value:,}" if isinstance(value, int) else f"{name:18} {value}")
    sys.exit(0 if float(str(figures["ratio"])) <= options.most else 1)


if __name__ == "__main__":
    main()
