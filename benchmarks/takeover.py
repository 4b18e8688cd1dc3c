"""Takeover test: run random schedules of takeovers and verify that no agent reply follows one.

python -m benchmarks.takeover [--schedules 5000] [--seeds 1 2 3 4]      (`make takeover`)
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from store.database import Database
from tests.support.servers import Databases, EmbeddedPostgres
from tests.support.takeover_schedules import Outcome, run_schedules


async def measure(url: str, schedules: int, seed: int) -> Outcome:
    """Run `schedules` random schedules on the migrated database at `url`."""
    database = Database(url, pool_size=20)
    await database.open()
    try:
        return await run_schedules(database, url, schedules, seed)
    finally:
        await database.close()


def main() -> int:
    """Print one row per seed; return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=5000, help="number of schedules per seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    options = parser.parse_args()
    wrong = 0
    print("| seed | schedules | switches | replies | cancelled turns | replies after a takeover | violated invariants | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="turnline-") as directory, EmbeddedPostgres(Path(directory), fast=True) as postgres:
        databases = Databases(postgres)
        for seed in options.seeds:
            outcome = asyncio.run(measure(databases.migrated(), options.schedules, seed))
            wrong += len(outcome.late) + len(outcome.violations)
            figures = (seed, options.schedules, outcome.switches, outcome.replies, outcome.interrupted, len(outcome.late))
            print(f"| {' | '.join(map(str, figures))} | {', '.join(outcome.violations) or 'none'} | {outcome.took_s:.0f} |", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
