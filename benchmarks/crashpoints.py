"""Every crash point, alone and in ordered pairs: a process is killed there, then the next one, and the books are checked.

    python -m benchmarks.crashpoints [--sample N] [--seed S] [--only model_call.before_send,model_call.answered] [--singles] [--lanes 4]

Each case is two messages in one session, each answered with three model calls, an idempotent tool and an unsafe one. It ends with both
messages answered once, every invariant held, the idempotent effects done once and no unsafe tool asked twice; or the program exits 1 and
says what is wrong. `--only` takes the names of the table; a name stands for its variants too (tool_call.before_send: also
"tool_call.before_send unsafe"). Ctrl-C ends it early, with the table so far.
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

COLUMNS = ("answered", "model asked again", "lookups", "refunds", "unsafe ended", "attempts", "s", "wrong")


def chosen(only: str) -> list[Crash]:
    """The crashes that `only` names, with their variants; all of them where it is empty."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    found = [crash for crash in CRASHES.values() if not names or crash.name in names or crash.name.split()[0] in names]
    unknown = [name for name in names if not any(name in (crash.name, crash.name.split()[0]) for crash in found)]
    if unknown:
        sys.exit(f"There is no crash {', '.join(unknown)}; there are {', '.join(CRASHES)}.")
    return found


def pairs(crashes: list[Crash]) -> list[tuple[Crash, ...]]:
    """All ordered pairs of them."""
    return list(itertools.product(crashes, repeat=2))


def run(cases: Cases, lanes: int, console: Console) -> tuple[list[Outcome], list[str]]:
    """Run the cases; returns what came of them, in their order, and the names of those that did not come to an end, each with why."""
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
            console.print("interrupted; these are the cases that were done")
        done = [future for future in futures if future.done()]
        failed = [f"{names[future]}: {future.exception()}" for future in done if future.exception() is not None]
        return [future.result() for future in done if future.exception() is None], failed


def _verdict(future: Future[Outcome]) -> str:
    error = future.exception()
    if error is not None:
        return f"did not come to an end: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return "; ".join(future.result().wrong) or "ok"


def report(outcomes: list[Outcome], failed: list[str], console: Console) -> None:
    """Print the table of outcomes and their sums."""
    table = Table(title="killed at, and then at")
    for column in ("case", *COLUMNS):
        table.add_column(column)
    for one in outcomes:
        table.add_row(
            one.name, f"{one.answered} of 2", str(one.asked_again), _row(one.lookups), _row(one.refunds), _row(one.refund_states),
            _row(one.attempts), f"{one.seconds:.1f}", "; ".join(one.wrong) or "-",
        )  # fmt: skip
    console.print(table)
    again = Counter(one.asked_again for one in outcomes)
    console.print("model calls made again: " + ", ".join(f"{count} in {cases} cases" for count, cases in sorted(again.items())))
    for failure in failed:
        console.print(f"did not come to an end: {failure}")
    wrong = sum(bool(one.wrong) for one in outcomes)
    console.print(f"{len(outcomes) + len(failed)} cases, {wrong} with violations, {len(failed)} not come to an end")


def _row(values: list[int] | list[str]) -> str:
    return ", ".join(map(str, values))


def main() -> None:
    """Run them and exit 0 when every invariant held in every case."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sample", type=int, default=0, metavar="N", help="N of the pairs instead of all")
    arguments.add_argument("--seed", type=int, default=1, metavar="S", help="which N (default 1)")
    arguments.add_argument("--only", default="", metavar="NAME,NAME", help="only these points and pairs of them")
    arguments.add_argument("--singles", action="store_true", help="each point alone, no pairs")
    arguments.add_argument("--lanes", type=int, default=4, help="cases at the same time (default 4)")
    given = arguments.parse_args()
    crashes = chosen(given.only)
    cases: list[tuple[Crash, ...]] = [(crash,) for crash in crashes]
    if not given.singles:
        several = pairs(crashes)
        if given.sample:
            several = random.Random(given.seed).sample(several, min(given.sample, len(several)))
        cases += several
    console = Console(width=max(140, Console().width), highlight=False)
    outcomes, failed = run(cases, given.lanes, console)
    report(outcomes, failed, console)
    sys.exit(1 if failed or any(one.wrong for one in outcomes) else 0)


if __name__ == "__main__":
    main()
