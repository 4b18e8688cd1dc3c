"""The baseline of `benchmarks.turns`: the same turn in one asyncio process, without queue, lease or resume.

It shows the cost of the work itself in Python: two model calls, one tool call and three commits, a session's turns in sequence.

    python -m benchmarks.floor JOB.json      (prints READY, waits for a line on stdin, runs, prints the figures as JSON)
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp
from psycopg_pool import AsyncConnectionPool

SCHEMA = """
CREATE SCHEMA IF NOT EXISTS floor;
CREATE TABLE IF NOT EXISTS floor.sessions (id text PRIMARY KEY, next_offset integer NOT NULL DEFAULT 0, tokens integer NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS floor.events (session_id text REFERENCES floor.sessions, "offset" integer, kind text, content jsonb,
    PRIMARY KEY (session_id, "offset"));
"""
APPEND = """
WITH s AS (UPDATE floor.sessions SET next_offset = next_offset + %(n)s, tokens = tokens + %(tokens)s WHERE id = %(session)s
           RETURNING next_offset - %(n)s AS first)
INSERT INTO floor.events (session_id, "offset", kind, content)
SELECT %(session)s, s.first + o - 1, e->>'kind', e->'content' FROM s, jsonb_array_elements(%(events)s::jsonb) WITH ORDINALITY AS x (e, o)
"""


class Turn:
    """The benchmark's turn, as simple as possible."""

    def __init__(self, pool: AsyncConnectionPool[Any], http: aiohttp.ClientSession, url: str, tool: dict[str, Any]) -> None:
        self.pool, self.http, self.url, self.tool = pool, http, url, tool

    async def append(self, session: str, *events: tuple[str, object], tokens: int = 0) -> None:
        documents = [{"kind": kind, "content": content} for kind, content in events]
        async with self.pool.connection() as db:
            await db.execute(APPEND, {"session": session, "n": len(events), "tokens": tokens, "events": json.dumps(documents)})

    async def call_model(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        body = {"model": "gpt-4o", "messages": messages, "tools": [{"type": "function", "function": self.tool}]}
        async with self.http.post(f"{self.url}/v1/chat/completions", json=body, headers={"Authorization": "Bearer sk"}) as response:
            reply: dict[str, Any] = await response.json()
            return reply

    async def run(self, session: str, text: str) -> None:
        await self.append(session, ("customer_message", {"text": text}))
        messages: list[dict[str, Any]] = [{"role": "user", "content": text}]
        first = await self.call_model(messages)
        message = first["choices"][0]["message"]
        call = message["tool_calls"][0]
        async with self.http.post(f"{self.url}/tools/orders_lookup", json=json.loads(call["function"]["arguments"])) as response:
            result = await response.json()
        await self.append(session, ("tool_call", call), ("tool_result", result))
        messages += [message, {"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)}]
        last = await self.call_model(messages)
        tokens = first["usage"]["total_tokens"] + last["usage"]["total_tokens"]
        await self.append(session, ("agent_message", {"text": last["choices"][0]["message"]["content"]}), tokens=tokens)


async def main(job: dict[str, Any]) -> None:
    """Run the job {"database_url", "sandbox_url", "tool", "turns": [[session, text], …], "rate": turns per second or null}."""
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
        job["database_url"], min_size=20, max_size=20, open=False, kwargs={"autocommit": True}
    )
    await pool.open(wait=True)
    async with pool.connection() as db:
        await db.execute(SCHEMA)
        for session in {session for session, _ in job["turns"]} | {"warm"}:
            await db.execute("INSERT INTO floor.sessions (id) VALUES (%s) ON CONFLICT DO NOTHING", (session,))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        turn = Turn(pool, http, job["sandbox_url"], job["tool"])
        for _ in range(40):
            await turn.run("warm", "Is order 1 paid?")
        print("READY", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        began, cpu = time.monotonic(), time.process_time()
        seconds: list[float] = []

        async def session_turns(session: str, texts: list[str], at: float) -> None:
            for text in texts:
                await turn.run(session, text)
                seconds.append(time.monotonic() - at)

        if job["rate"]:
            tasks = []
            for number, (session, text) in enumerate(job["turns"]):
                await asyncio.sleep(max(0.0, began + number / job["rate"] - time.monotonic()))
                tasks.append(asyncio.create_task(session_turns(session, [text], time.monotonic())))
            await asyncio.gather(*tasks)
        else:
            by_session: dict[str, list[str]] = {}
            for session, text in job["turns"]:
                by_session.setdefault(session, []).append(text)
            await asyncio.gather(*(session_turns(session, texts, began) for session, texts in by_session.items()))
        done = {"seconds": time.monotonic() - began, "cpu_s": time.process_time() - cpu, "took_s": seconds}
        print(json.dumps(done), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
    await pool.close()


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        asyncio.run(main(json.load(file)))
