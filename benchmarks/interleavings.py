"""Random interleavings of everybody who acts on a session, by the thousand, until one of them goes wrong.

    python -m benchmarks.interleavings [--examples 2000] [--moves 60] [--seed S] [--as-found]

Customers, an operator, workers and the sweeper act on one or two sessions of a workspace, one move after the other in random order; the
moves, and what is checked after each, are those of `tests/machine`. The first example that goes wrong is made as short as possible
(`--as-found`: it is shown as it was found, at once), and the program exits 1. The same seed makes the same examples.
"""

from __future__ import annotations

import argparse
import random
import time

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import get_state_machine_test

from cli.standalone.unprivileged import scratch_directory
from tests.support.servers import Databases, EmbeddedPostgres
from tests.system.machine.environment import Environment
from tests.system.machine.machine import Machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--moves", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--as-found", action="store_true", help="do not make the example that went wrong shorter")
    given = parser.parse_args()
    chosen = settings(
        max_examples=given.examples,
        stateful_step_count=given.moves,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,) if given.as_found else (Phase.generate, Phase.shrink),
    )
    print(f"seed {given.seed}", flush=True)
    began = time.monotonic()
    with (
        scratch_directory("turnline-interleavings-") as directory,
        EmbeddedPostgres(directory / "postgres", fast=True) as postgres,
        Environment(Databases(postgres).migrated()) as environment,
    ):
        machine = type("Interleavings", (Machine,), {"environment": environment})
        test = seed(given.seed)(get_state_machine_test(machine, settings=chosen))
        try:
            test()
        finally:
            for name, count in sorted(Machine.tally.items()):
                print(f"{count:8} {name}")
            print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
