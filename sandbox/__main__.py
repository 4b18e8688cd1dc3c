"""`python -m sandbox`: the sandbox as a process of its own, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import signal

from sandbox import page
from sandbox.server import Sandbox


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sandbox", description=page.text(), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 finds a free one")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="how long the model takes to begin its answer")
    parser.add_argument("--tool-latency-ms", type=float, default=0.0, help="how long a tool takes")
    parser.add_argument("--token-ms", type=float, default=0.0, help="the time between two chunks of a stream")
    return parser.parse_args()


async def serve(given: argparse.Namespace) -> None:
    """Serve until told to stop, having said in one line where."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    sandbox = Sandbox(
        host=given.host,
        port=given.port,
        latency_s=given.latency_ms / 1000,
        tool_latency_s=given.tool_latency_ms / 1000,
        token_s=given.token_ms / 1000,
    )
    async with sandbox:
        print(f"sandbox listening on {sandbox.url}", flush=True)
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(serve(_arguments()))
