"""`python -m sandbox`: run the sandbox as a process until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import signal

from sandbox import help_page
from sandbox.server import Sandbox


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sandbox", description=help_page.text(), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0: a free one")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="milliseconds until the model starts to answer")
    parser.add_argument("--tool-latency-ms", type=float, default=0.0, help="milliseconds until a tool answers")
    parser.add_argument("--token-ms", type=float, default=0.0, help="milliseconds between two chunks of a stream")
    return parser.parse_args()


async def serve(arguments: argparse.Namespace) -> None:
    """Print the URL on one line, then serve until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    sandbox = Sandbox(
        host=arguments.host,
        port=arguments.port,
        latency_s=arguments.latency_ms / 1000,
        tool_latency_s=arguments.tool_latency_ms / 1000,
        token_s=arguments.token_ms / 1000,
    )
    async with sandbox:
        print(f"sandbox listening on {sandbox.url}", flush=True)
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(serve(_arguments()))
