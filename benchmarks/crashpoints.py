"""Crash test: kill a process at each failpoint, and at each ordered pair of failpoints, then verify the data.

    python -m benchmarks.crashpoints [--sample N] [--seed S] [--only model_call.before_send,model_call.answered] [--singles] [--lanes 4]

Each case is two messages in one session, each answered with three model calls, an idempotent tool and an unsafe one. At the end both
messages must have been answered once, all invariants must hold, each idempotent effect must have happened once and no unsafe tool may
have been called twice; otherwise the program prints all problems and exits with 1. `--only` takes names from the table; a name includes
its variants (tool_call.before_send: also "tool_call.before_send unsafe"). Ctrl-C ends the run early and prints the table so far.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections import Counter
from concurrent.futures import Future, as_completed
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cli.standalone.unprivileged import scratch_directory
from tests.support.servers import Databases, EmbeddedPostgres
from tests.system.crashes.case import Outcome
from tests.system.crashes.crash_table import CRASHES, Crash
from tests.system.crashes.runners import Cases, run_cases

COLUMNS = ("answered", "repeated model calls", "lookups", "refunds", "status of unsafe calls", "attempts", "seconds", "wrong")


def chosen(only: str) -> list[Crash]:
    """Return the crashes that `only` names, with their variants; all crashes if it is empty."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    found = [crash for crash in CRASHES.values() if not names or crash.name in names or crash.name.split()[0] in names]
    unknown = [name for name in names if not any(name in (crash.name, crash.name.split()[0]) for crash in found)]
    if unknown:
        sys.exit(f"Unknown crash: {', '.join(unknown)}. Known crashes: {', '.join(CRASHES)}.")
    return found


def pairs(crashes: list[Crash]) -> list[tuple[Crash, ...]]:
    """Return all ordered pairs."""
    return list(itertools.product(crashes, repeat=2))


def run(cases: Cases, lanes: int, console: Console) -> tuple[list[Outcome], list[str]]:
    """Run the cases. Return the outcomes, in order, and one line for each case that did not finish, with the reason."""
    with (
        scratch_directory("turnline-crashpoints-") as directory,
        EmbeddedPostgres(directory / "postgres", fast=True) as postgres,
        run_cases(Databases(postgres), Path(directory), cases, lanes) as futures,
    ):
        names = {future: " then ".join(crash.name for crash in crashes) for future, crashes in zip(futures, cases, strict=True)}
        began = time.monotonic()
        try:
            for number, future in enumerate(as_completed(futures), 1):
                console.print(f"{number:4} of {len(cases)}  {time.monotonic() - began:6.0f} s  {names[future]:40} {_verdict(future)}")
        except KeyboardInterrupt:
            console.print("interrupted; these cases were finished")
        done = [future for future in futures if future.done()]
        failed = [f"{names[future]}: {future.exception()}" for future in done if future.exception() is not None]
        return [future.result() for future in done if future.exception() is None], failed


def _verdict(future: Future[Outcome]) -> str:
    error = future.exception()
    if error is not None:
        return f"did not finish: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return "; ".join(future.result().wrong) or "ok"


def report(outcomes: list[Outcome], failed: list[str], console: Console) -> None:
    """Print the table of outcomes and the sums."""
    table = Table(title="Processes killed at one or two failpoints")
    for column in ("case", *COLUMNS):
        table.add_column(column)
    for one in outcomes:
        table.add_row(
            one.name, f"{one.answered} of 2", str(one.repeated_requests), _join(one.lookups), _join(one.refunds), _join(one.refund_states),
            _join(one.attempts), f"{one.seconds:.1f}", "; ".join(one.wrong) or "-",
        )  # fmt: skip
    console.print(table)
    repeated = Counter(one.repeated_requests for one in outcomes)
    console.print("repeated model calls: " + ", ".join(f"{count} in {cases} cases" for count, cases in sorted(repeated.items())))
    for failure in failed:
        console.print(f"did not finish: {failure}")
    wrong = sum(bool(one.wrong) for one in outcomes)
    console.print(f"{len(outcomes) + len(failed)} cases, {wrong} with violations, {len(failed)} unfinished")


def _join(values: list[int] | list[str]) -> str:
    return ", ".join(map(str, values))


def main() -> None:
    """Run the cases; exit with 1 if anything is wrong."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sample", type=int, default=0, metavar="N", help="run N random pairs instead of all")
    arguments.add_argument("--seed", type=int, default=1, metavar="S", help="seed of the sample (default 1)")
    arguments.add_argument("--only", default="", metavar="NAME,NAME", help="only these failpoints and pairs of them")
    arguments.add_argument("--singles", action="store_true", help="no pairs")
    arguments.add_argument("--lanes", type=int, default=4, help="number of concurrent cases (default 4)")
    options = arguments.parse_args()
    crashes = chosen(options.only)
    cases: list[tuple[Crash, ...]] = [(crash,) for crash in crashes]
    if not options.singles:
        chosen_pairs = pairs(crashes)
        if options.sample:
            chosen_pairs = random.Random(options.seed).sample(chosen_pairs, min(options.sample, len(chosen_pairs)))
        cases += chosen_pairs
    console = Console(width=max(140, Console().width), highlight=False)
    outcomes, failed = run(cases, options.lanes, console)
    report(outcomes, failed, console)
    sys.exit(1 if failed or any(one.wrong for one in outcomes) else 0)


if __name__ == "__main__":
    main()
