"""How long after a cancel over HTTP its turn has ended, and the vendor's connection is gone.

    python -m benchmarks.cancelling [--samples 40]

One turn at a time is in the middle of a streamed reply, with one of two worker processes.
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

STREAM = "[[words 5000]] [[token-ms 20]]"  # longer than anybody waits
TARGET_S = 1.0


def measure(stack: Stack, samples: int) -> tuple[list[float], list[float]]:
    """Seconds from sending a cancel until the vendor saw the client leave, and until the log says that the turn was cancelled."""
    gone: list[float] = []
    ended: list[float] = []
    port = free_port()
    stack.api(port)
    stack.beat()
    for _ in range(2):
        stack.worker()

    async def make() -> str:
        async with opened(stack.database_url) as database:
            return (await workspaces.create(database, "Acme")).api_key

    def asked(text: str) -> bool:
        return text in stack.counts()["by_text"]

    def more_left_than(number: int) -> bool:
        return int(stack.counts()["model"]["left"]) > number

    headers = {"Authorization": f"Bearer {asyncio.run(make())}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", headers=headers, timeout=60, trust_env=False) as http:
        agent = http.post("/agents", json={"name": "Ada", "max_tokens": 100_000}).json()["id"]
        for number in range(samples):
            session = http.post("/sessions", json={"agent_id": agent}).json()["id"]
            text = f"{STREAM} {number}"
            turn = http.post(f"/sessions/{session}/messages", json={"text": text}).json()["turn"]["id"]
            until(partial(asked, text), 60)
            time.sleep(random.uniform(0.5, 1.0))  # anywhere between two looks of the worker
            left = stack.counts()["model"]["left"]
            began = time.monotonic()
            http.post(f"/turns/{turn}/cancel").raise_for_status()
            until(partial(more_left_than, left), 60)
            gone.append(time.monotonic() - began)
            events = http.get(f"/sessions/{session}/events", params={"kind": "status_update", "wait": 20}).json()["events"]
            ended.append(time.monotonic() - began)
            assert events[0]["content"]["partial_text"]
    stack.drained()
    if found := violations(stack.database_url):
        raise SystemExit(f"violated: {found}")
    return gone, ended


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=40)
    with rig() as (stack, _, _):
        gone, ended = measure(stack, parser.parse_args().samples)
    print("| seconds after the cancel was sent | p50 | p95 | max |")
    print("|---|---|---|---|")
    for name, took in (("the vendor's connection is gone", gone), ("the turn has ended, in the log", ended)):
        print(f"| {name} | {percentile(took, 0.5):.2f} | {percentile(took, 0.95):.2f} | {max(took):.2f} |")
    print(f"target: under {TARGET_S:.0f} s; {len(ended)} cancels, two workers, the books closed")


if __name__ == "__main__":
    main()
