"""State machine test: run thousands of random interleavings of customers, operator, workers and sweep until one goes wrong.

    python -m benchmarks.interleavings [--examples 2000] [--moves 60] [--seed S] [--as-found]

They act on one or two sessions of a workspace, one move at a time in random order; `tests/system/machine` defines the moves and the checks
after each. The first example that fails is shrunk (with `--as-found` it is printed as it was found), and the program exits with 1. The
same seed makes the same examples.
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
    """Run the examples and print how often each move was made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--moves", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--as-found", action="store_true", help="do not shrink the failing example")
    options = parser.parse_args()
    chosen = settings(
        max_examples=options.examples,
        stateful_step_count=options.moves,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,) if options.as_found else (Phase.generate, Phase.shrink),
    )
    print(f"seed {options.seed}", flush=True)
    began = time.monotonic()
    with (
        scratch_directory("turnline-interleavings-") as directory,
        EmbeddedPostgres(directory / "postgres", fast=True) as postgres,
        Environment(Databases(postgres).migrated()) as environment,
    ):
        machine = type("Interleavings", (Machine,), {"environment": environment})
        test = seed(options.seed)(get_state_machine_test(machine, settings=chosen))
        try:
            test()
        finally:
            for name, count in sorted(Machine.tally.items()):
                print(f"{count:8} {name}")
            print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
