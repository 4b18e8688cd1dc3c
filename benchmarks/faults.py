"""Fault test: inject each fault under a full load, on both brokers, and verify the data after each.

    python -m benchmarks.faults [--messages 500] [--broker valkey|rabbitmq|both] [--fault NAME ...] [--rounds 3] [--lease 5]

A turn is three model calls and, between them, two calls of a tool with idempotency keys. A fault is injected up to `--rounds` times
while turns are running. The program prints one table and exits with 1 if a message was lost or answered twice, if an effect was
repeated, if a row was left open, or if a fault did not happen.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

from rich.console import Console
from rich.table import Table

from benchmarks.rig import percentile
from cli.standalone.unprivileged import scratch_directory
from tests.system.faults.all_faults import FAULTS
from tests.system.faults.load import Load
from tests.system.faults.rig import Kind, Rig, rig
from tests.system.faults.run_fault import Outcome, run

NO_BEAT_S = 60.0  # duration of the load without beat
ONCE = {"rolling restart", "three beats", "no beat"}  # these faults last as long as the load
console = Console(width=max(150, Console().width))


def run_one(on: Rig, name: str, load: Load, rounds: int) -> Outcome:
    """Run one fault. An exception is reported in `wrong`."""
    fault = FAULTS[name]()
    if name == "no beat":
        load = replace(load, over_s=NO_BEAT_S)
    began = time.monotonic()
    try:
        return run(on, fault, load, rounds=1 if name in ONCE else rounds, at_least=min(10, load.messages // 10), within_s=180)
    except Exception as error:  # noqa: BLE001 - reported, so that the other faults still run
        wrong = [f"{type(error).__name__}: {str(error)[:2000]}"]
        return Outcome(load.messages, fault=name, broker=on.kind, seconds=time.monotonic() - began, wrong=wrong)


def on_broker(kind: Kind, names: list[str], load: Load, rounds: int, lease_s: float) -> Iterator[Outcome]:
    """Run the faults on one rig, with a new rig after a fault that went wrong."""
    remaining = list(names)
    while remaining:
        with (
            scratch_directory("turnline-faults-") as directory,
            rig(
                kind,
                directory,
                concurrency=max(6, load.sessions // 4),
                fast=False,
                TURNLINE_TURN_LEASE_S=str(lease_s),
                TURNLINE_TURN_HEARTBEAT_S=str(lease_s / 4),
            ) as made,
        ):
            while remaining:
                name = remaining.pop(0)
                with console.status(f"{name} on {kind}, {load.messages} messages …"):
                    outcome = run_one(made, name, load, rounds)
                console.print(f"{name} on {kind}: {outcome.seconds:.0f} s, " + ("; ".join(outcome.wrong) or "nothing wrong"))
                yield outcome
                if outcome.wrong:
                    break


def report(outcomes: list[Outcome]) -> None:
    """Print the table, the evidence that the faults happened, and everything that is wrong."""
    counts = ("turns", "injected", "running", "lost", "doubled", "repeated effects", "extra model calls")
    headings = ("fault", "broker", *counts, "p50", "p95", "max", "seconds")
    table = Table(title="Faults under load")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < 2 else "right")
    for one in outcomes:
        figures = (one.answered, one.injected, one.in_flight, one.lost, one.doubled, one.effects_repeated, one.extra_model_calls)
        recovery = (f"{percentile(one.recovery_s, part):.1f}" for part in (0.5, 0.95, 1.0))
        table.add_row(one.fault, one.broker, *(str(figure) for figure in figures), *recovery, f"{one.seconds:.0f}")
    console.print(table)
    console.print(
        "turns: answered exactly once. running: turns running when the fault was injected. extra model calls: ledger rows beyond three\n"
        "per turn. p50, p95, max: seconds from the end of the fault until turns that were open during it had settled."
    )
    for one in outcomes:
        console.print(f"{one.fault} on {one.broker}: " + ", ".join(f"{name}: {count}" for name, count in one.evidence.items()), style="dim")
        for line in one.wrong:
            console.print(f"[red]wrong:[/red] {one.fault} on {one.broker}: {line}")


def main() -> None:
    """Run the faults; exit with 1 if anything is wrong."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--messages", type=int, default=500)
    arguments.add_argument("--sessions", type=int, default=100)
    arguments.add_argument("--workspaces", type=int, default=10)
    arguments.add_argument("--over", type=float, default=10.0, metavar="SECONDS", help="period over which the messages are sent")
    arguments.add_argument("--broker", choices=(*get_args(Kind), "both"), default="both")
    arguments.add_argument("--fault", action="append", choices=sorted(FAULTS), metavar="NAME", help=", ".join(FAULTS))
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--lease", type=float, default=5.0, metavar="SECONDS")
    options = arguments.parse_args()
    load = Load(options.messages, options.sessions, options.workspaces, options.over)
    kinds: tuple[Kind, ...] = get_args(Kind) if options.broker == "both" else (options.broker,)
    outcomes = [
        outcome
        for kind in kinds
        for outcome in on_broker(
            kind, [name for name in options.fault or FAULTS if kind not in FAULTS[name].not_on], load, options.rounds, options.lease
        )
    ]
    report(outcomes)
    sys.exit(1 if any(outcome.wrong for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
