"""Measure health probes: how long one maintenance worker needs to probe 10,000 tool integrations.

    python -m benchmarks.health [--integrations 10000] [--latency-ms 20] [--silent 2000]

The integrations belong to 100 workspaces. The sandbox answers after `--latency-ms`; `--silent` of them have a server that accepts
connections and never answers. Target: all are probed within TURNLINE_HEALTH_EVERY_S (300 s). Prints seconds, probes per second, and CPU
of worker and Postgres per probe. With silent integrations it continues for a second interval, in which they are known to have failed, and
prints the longest time since a healthy integration's last probe; the target is the same.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Iterator

import psycopg

from benchmarks.rig import cpu_s, rig
from tests.support.servers import until

EVERY_S = 300.0
FILL = """
WITH w AS (INSERT INTO workspaces (name) SELECT 'W' || n FROM generate_series(1, 100) n RETURNING id),
t AS (INSERT INTO tools (workspace_id, name, parameters) SELECT id, 'tool', '{}' FROM w RETURNING id, workspace_id)
INSERT INTO tool_integrations (workspace_id, tool_id, integration_type, target_id, configuration)
SELECT workspace_id, id, 'custom_tool', 'target ' || n,
    jsonb_build_object('url', CASE WHEN n <= %(silent)s THEN %(silent_url)s ELSE %(url)s END || n)
FROM t, generate_series(1, %(each)s) n"""
OLDEST = "SELECT extract(epoch FROM max(now() - last_health_check))::float8 FROM tool_integrations WHERE health_status = 'healthy'"


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """Run a server that accepts connections and never answers; yields its URL."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(asyncio.Protocol, "127.0.0.1", 0, backlog=4096))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


def main() -> int:
    """Measure and print the figures; return 1 if the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--integrations", type=int, default=10_000)
    parser.add_argument("--latency-ms", type=int, default=20)
    parser.add_argument("--silent", type=int, default=0)
    options = parser.parse_args()
    with rig() as (stack, postgres, _), silent_server() as silent_url:
        with psycopg.connect(stack.database_url, autocommit=True) as db:
            address = f"{stack.sandbox_url}/tools/x?latency_ms={options.latency_ms}&n="
            each, silent = options.integrations // 100, options.silent // 100  # per workspace
            db.execute(FILL, {"url": address, "silent_url": silent_url, "each": each, "silent": silent})
        worker = stack.start("-m", "cli.main", "worker", "--maintenance")
        until(lambda: worker.logged("ready."), 30)
        assert postgres.pid is not None
        began, cpu, database_cpu = time.monotonic(), cpu_s([worker.popen.pid]), cpu_s([postgres.pid])
        stack.beat()
        unprobed = options.integrations
        while unprobed and time.monotonic() - began < 3 * EVERY_S:
            time.sleep(1)
            unprobed = stack.one("SELECT count(*) FROM tool_integrations WHERE last_health_check IS NULL")
            print(f"\r{time.monotonic() - began:.0f} s: {options.integrations - unprobed} probed", end="", flush=True)
        seconds = time.monotonic() - began
        healthy = stack.one("SELECT count(*) FROM tool_integrations WHERE health_status = 'healthy'")
        worker_cpu_s, postgres_cpu_s = cpu_s([worker.popen.pid]) - cpu, cpu_s([postgres.pid]) - database_cpu
        oldest_s, until_s = 0.0, time.monotonic() + (EVERY_S if options.silent else 0)
        while time.monotonic() < until_s:
            time.sleep(5)
            oldest_s = max(oldest_s, stack.one(OLDEST))
            print(f"\r{time.monotonic() - began:.0f} s: longest time since a healthy one was probed: {oldest_s:.0f} s", end="", flush=True)
        by_status = stack.rows("SELECT health_status, count(*) FROM tool_integrations GROUP BY 1 ORDER BY 1")
    if options.silent:
        print(f"\rSecond interval, {options.silent} silent: healthy ones probed at most {oldest_s:.0f} s ago; {dict(by_status)}.")
    probed = options.integrations - unprobed
    print(
        f"\r{probed} of {options.integrations} probed in {seconds:.0f} s ({probed / seconds:.0f}/s), {healthy} healthy; CPU per probe: "
        f"worker {1000 * worker_cpu_s / options.integrations:.1f} ms, Postgres {1000 * postgres_cpu_s / options.integrations:.1f} ms. "
        f"Target: {EVERY_S:.0f} s."
    )
    return 1 if unprobed or max(seconds, oldest_s) > EVERY_S else 0


if __name__ == "__main__":
    sys.exit(main())
