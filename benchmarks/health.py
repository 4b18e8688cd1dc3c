"""Tools' integrations asked by one maintenance worker, as the schedule has it: how long it takes until all were asked once.

    python -m benchmarks.health [--integrations 10000] [--latency-ms 20] [--silent 2000]

They belong to 100 workspaces; a stand-in tool server answers each after so many milliseconds, but for `--silent` of them, whose server
accepts connections and says nothing. The target: all of them within TURNLINE_HEALTH_EVERY_S (300 s). Prints seconds, checks a second,
CPU of the worker and of Postgres per check. With silent ones it goes on for another interval, in which these are known to be silent,
and prints how long ago a healthy one was asked at most: the target is the same.
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
    jsonb_build_object('url', CASE WHEN n <= %(silent)s THEN %(quiet)s ELSE %(url)s END || n)
FROM t, generate_series(1, %(each)s) n"""
OLDEST = "SELECT extract(epoch FROM max(now() - last_health_check))::float8 FROM tool_integrations WHERE health_status = 'healthy'"


@contextlib.contextmanager
def quiet() -> Iterator[str]:
    """A server that accepts whoever comes and never answers; its address."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--integrations", type=int, default=10_000)
    parser.add_argument("--latency-ms", type=int, default=20)
    parser.add_argument("--silent", type=int, default=0)
    given = parser.parse_args()
    with rig() as (stack, postgres, _), quiet() as nobody:
        with psycopg.connect(stack.database_url, autocommit=True) as db:
            address = f"{stack.sandbox_url}/tools/x?latency_ms={given.latency_ms}&n="
            db.execute(FILL, {"url": address, "quiet": nobody, "each": given.integrations // 100, "silent": given.silent // 100})
        worker = stack.start("-m", "cli.main", "worker", "--maintenance")
        until(lambda: worker.logged("ready."), 30)
        assert postgres.pid is not None
        began, cpu, database_cpu = time.monotonic(), cpu_s([worker.popen.pid]), cpu_s([postgres.pid])
        stack.beat()
        left = given.integrations
        while left and time.monotonic() - began < 3 * EVERY_S:
            time.sleep(1)
            left = stack.one("SELECT count(*) FROM tool_integrations WHERE last_health_check IS NULL")
            print(f"\r{time.monotonic() - began:.0f} s: {given.integrations - left} asked", end="", flush=True)
        seconds = time.monotonic() - began
        well = stack.one("SELECT count(*) FROM tool_integrations WHERE health_status = 'healthy'")
        spent, database_spent = cpu_s([worker.popen.pid]) - cpu, cpu_s([postgres.pid]) - database_cpu
        oldest_s, until_s = 0.0, time.monotonic() + (EVERY_S if given.silent else 0)
        while time.monotonic() < until_s:
            time.sleep(5)
            oldest_s = max(oldest_s, stack.one(OLDEST))
            print(f"\r{time.monotonic() - began:.0f} s: a healthy one was asked {oldest_s:.0f} s ago at most", end="", flush=True)
        by_status = stack.rows("SELECT health_status, count(*) FROM tool_integrations GROUP BY 1 ORDER BY 1")
    if given.silent:
        print(f"\rWith {given.silent} silent a healthy one was asked {oldest_s:.0f} s ago at most; {dict(by_status)}. Before that:")
    print(
        f"\r{given.integrations - left} of {given.integrations} asked in {seconds:.0f} s ({(given.integrations - left) / seconds:.0f}/s), "
        f"{well} healthy; CPU per check: worker {1000 * spent / given.integrations:.1f} ms, Postgres "
        f"{1000 * database_spent / given.integrations:.1f} ms. Target: {EVERY_S:.0f} s."
    )
    return 1 if left or max(seconds, oldest_s) > EVERY_S else 0


if __name__ == "__main__":
    sys.exit(main())
