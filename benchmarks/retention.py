"""What a clean-up costs the turns that are carried meanwhile: the p99 of their statements during it, as a multiple of its quiet value.

    python -m benchmarks.retention --events 1000000

Postgres as in earnest, a steady stream of turns (accepted, claimed, answered: three commits each), first alone, then while
`turnline jobs run retention.clean_up` deletes sessions of long ago, then alone again. Exits with 1 where the ratio is above --most.
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

TURNS_OF_ONE = 5  # of a session; four events each
AT_A_TIME = 1000
SESSIONS = 200  # that turns are carried in


async def past(database: Database, stack: Stack, events: int) -> Tenant:
    """Sessions of long ago with about so many events between them, a tenth of those in one of them."""
    sessions = max(1, int(events * 0.9) // (4 * TURNS_OF_ONE))
    made = await tenant(database, sessions=sessions + 1)
    for first in range(0, sessions, AT_A_TIME):
        some = made.session_ids[1:][first : first + AT_A_TIME]
        await asyncio.to_thread(filled, stack.database_url, made, some, turns=TURNS_OF_ONE)
    long = max(1, (events - 4 * TURNS_OF_ONE * sessions) // 4)
    await asyncio.to_thread(filled, stack.database_url, made, made.session_ids[:1], turns=long)
    with psycopg.connect(stack.database_url, autocommit=True) as db:
        db.execute("VACUUM ANALYZE")
        db.execute("CHECKPOINT")
    return made


async def carry(database: Database, made: Tenant, number: int) -> float:
    """One turn from its message to its reply; seconds spent in the database."""
    began = time.perf_counter()
    session_id = made.session_ids[number % SESSIONS]
    accepted = await intake.accept(database, made.workspace_id, session_id, "Is order 41 paid?")
    if accepted.to_dispatch is not None:
        held = await claimed(database, accepted.turn_id, owner=f"w{number}")
        await held.write(ANSWERED)
    return time.perf_counter() - began


async def stream(database: Database, made: Tenant, rate: float, going_on: Callable[[float], bool], numbers: list[int]) -> list[float]:
    """Turns begun at a steady rate for as long as `going_on` (seconds so far) says; how long each took, counted from when it was due."""
    began, took = time.perf_counter(), list[float]()

    async def one(number: int, due: float) -> None:
        late = time.perf_counter() - due
        took.append(late + await carry(database, made, number))

    count = 0
    async with asyncio.TaskGroup() as running:  # a turn that fails ends the measurement
        while going_on(time.perf_counter() - began):
            due = began + count / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            running.create_task(one(numbers[0], due))
            numbers[0] += 1
            count += 1
    return took


async def measure(stack: Stack, events: int, rate: float, quiet_s: float) -> dict[str, object]:
    """The figures of one run."""
    database = Database(stack.database_url, pool_size=8)
    await database.open()
    began = time.monotonic()
    await past(database, stack, events)
    made = await tenant(database, sessions=SESSIONS)
    print(f"{events:,} events of long ago were made in {time.monotonic() - began:.0f} s", file=sys.stderr)
    numbers = [0]
    await stream(database, made, rate, lambda so_far: so_far < 5, numbers)  # caches and plans

    before = await stream(database, made, rate, lambda so_far: so_far < quiet_s, numbers)
    job = stack.start("-m", "cli.main", "jobs", "run", "retention.clean_up", "--json")
    # A worker would be there already: what it costs to start a process is not counted.
    await stream(database, made, rate, lambda _: not stack.one("SELECT count(*) FROM job_runs") and job.popen.poll() is None, numbers)
    began = time.monotonic()
    during = await stream(database, made, rate, lambda _: job.popen.poll() is None, numbers)
    took = time.monotonic() - began
    counts = json.loads(job.log.read_text().strip().splitlines()[-1])["counts"]
    after = await stream(database, made, rate, lambda so_far: so_far < quiet_s, numbers)
    await database.close()

    quiet = percentile(before + after, 0.99)
    figures: dict[str, object] = {"events_deleted": counts["events_deleted"], "sessions_deleted": counts["sessions_deleted"]}
    figures |= {"clean_up_s": round(took, 1), "turns_per_s": rate}
    for name, times in (("before", before), ("during", during), ("after", after)):
        figures |= {f"p50_{name}_ms": round(percentile(times, 0.5) * 1000, 1), f"p99_{name}_ms": round(percentile(times, 0.99) * 1000, 1)}
    return figures | {"ratio": round(percentile(during, 0.99) / quiet, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000, help="events to delete (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=40.0, help="turns a second (default: %(default)s)")
    parser.add_argument("--quiet-s", type=float, default=30.0, help="seconds to measure alone, before and after (default: %(default)s)")
    parser.add_argument("--most", type=float, default=1.5, help="the highest ratio that passes (default: %(default)s)")
    options = parser.parse_args()
    with rig(TURNLINE_RETENTION_MAX_S="600") as (stack, _, _):
        figures = asyncio.run(measure(stack, options.events, options.rate, options.quiet_s))
    for name, value in figures.items():
        print(f"{name:18} {value:,}" if isinstance(value, int) else f"{name:18} {value}")
    sys.exit(0 if float(str(figures["ratio"])) <= options.most else 1)


if __name__ == "__main__":
    main()
