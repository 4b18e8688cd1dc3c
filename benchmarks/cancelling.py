"""Measure how long after a cancel request the turn is cancelled and the connection to the model provider closed.

    python -m benchmarks.cancelling [--samples 40]

Two worker processes; one turn at a time, cancelled in the middle of a streamed reply.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from functools import partial

import httpx

from benchmarks.rig import percentile, rig
from store.catalog import workspaces
from tests.support.api_server import opened
from tests.support.invariants import violations
from tests.support.servers import free_port, until
from tests.support.stack import Stack

STREAM = "[[words 5000]] [[token-ms 20]]"  # longer than the benchmark waits
TARGET_S = 1.0


def measure(stack: Stack, samples: int) -> tuple[list[float], list[float]]:
    """Return the seconds from each cancel until the provider saw the disconnect, and until the log says cancelled."""
    disconnected: list[float] = []
    cancelled: list[float] = []
    port = free_port()
    stack.api(port)
    stack.beat()
    for _ in range(2):
        stack.worker()

    async def create_workspace() -> str:
        async with opened(stack.database_url) as database:
            return (await workspaces.create(database, "Acme")).api_key

    def request_arrived(text: str) -> bool:
        return text in stack.counts()["by_text"]

    def disconnects_exceed(number: int) -> bool:
        return int(stack.counts()["model"]["left"]) > number

    headers = {"Authorization": f"Bearer {asyncio.run(create_workspace())}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", headers=headers, timeout=60, trust_env=False) as http:
        agent = http.post("/agents", json={"name": "Ada", "max_tokens": 100_000}).json()["id"]
        for number in range(samples):
            session = http.post("/sessions", json={"agent_id": agent}).json()["id"]
            text = f"{STREAM} {number}"
            turn = http.post(f"/sessions/{session}/messages", json={"text": text}).json()["turn"]["id"]
            until(partial(request_arrived, text), 60)
            time.sleep(random.uniform(0.5, 1.0))  # at a random moment between two of the worker's checks
            disconnects = stack.counts()["model"]["left"]
            began = time.monotonic()
            http.post(f"/turns/{turn}/cancel").raise_for_status()
            until(partial(disconnects_exceed, disconnects), 60)
            disconnected.append(time.monotonic() - began)
            events = http.get(f"/sessions/{session}/events", params={"kind": "status_update", "wait": 20}).json()["events"]
            cancelled.append(time.monotonic() - began)
            assert events[0]["content"]["partial_text"]
    stack.drained()
    if found := violations(stack.database_url):
        raise SystemExit(f"violated invariants: {found}")
    return disconnected, cancelled


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=40)
    with rig() as (stack, _, _):
        disconnected, cancelled = measure(stack, parser.parse_args().samples)
    print("| seconds from the cancel request | p50 | p95 | max |")
    print("|---|---|---|---|")
    for name, seconds in (
        ("until the provider's connection is closed", disconnected),
        ("until the turn is cancelled in the log", cancelled),
    ):
        print(f"| {name} | {percentile(seconds, 0.5):.2f} | {percentile(seconds, 0.95):.2f} | {max(seconds):.2f} |")
    print(f"target: under {TARGET_S:.0f} s; {len(cancelled)} cancels, two workers, no violated invariant")


if __name__ == "__main__":
    main()
