"""A tool's secret, from the API to the header of the tool's request: it appears nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import redis

from store.catalog import workspaces
from store.database import Database
from tests.support.servers import free_port
from tests.support.stack import TOOL, Stack

CANARY = "canary-secret-5f1d"


@pytest.fixture
def tool_server() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Provide the address of a tool server and the list of the headers of each request that it received."""
    seen: list[dict[str, str]] = []

    class Tool(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append({name.lower(): value for name, value in self.headers.items()})
            self.rfile.read(int(self.headers["content-length"]))
            body = b'{"paid": true}'
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Tool) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/lookup", seen
        server.shutdown()
        thread.join()


async def test_secret_is_sent_in_its_header_and_stored_nowhere_in_plain_text(
    stack: Stack, database: Database, tool_server: tuple[str, list[dict[str, str]]]
):
    url, seen = tool_server
    port = free_port()
    stack.api(port)
    stack.worker()
    made = await workspaces.create(database, "Secrets")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", headers={"Authorization": f"Bearer {made.api_key}"}) as api:
        tool = api.post("/tools", json=TOOL).raise_for_status().json()
        integration = {
            "integration_type": "custom_tool",
            "configuration": {"url": url, "secret_headers": {"Authorization": "Bearer {{token}}"}},
            "secrets": {"token": CANARY},
        }
        answers = [api.post(f"/tools/{tool['id']}/integrations", json=integration).raise_for_status().text]
        agent = api.post("/agents", json={"name": "Ada", "model_name": "gpt-4o", "tool_ids": [tool["id"]]}).raise_for_status().json()
        session = api.post("/sessions", json={"agent_id": agent["id"]}).raise_for_status().json()
        api.post(f"/sessions/{session['id']}/messages", json={"text": "Is order 41 paid?"}).raise_for_status()
        stack.drained()
        answers += [
            api.get(path).raise_for_status().text
            for path in (f"/tools/{tool['id']}/integrations", f"/tools/{tool['id']}", f"/sessions/{session['id']}/events")
        ]

    assert [headers["authorization"] for headers in seen] == [f"Bearer {CANARY}"]
    assert "idempotency-key" in seen[0]
    assert CANARY not in "".join(answers)
    assert CANARY not in stack.tails()
    with redis.Redis.from_url(stack.broker_url) as broker:
        stored = b"".join(broker.dump(key) or b"" for key in broker.scan_iter())
    assert CANARY.encode() not in stored
    for table in ("events", "tool_calls", "model_calls", "turns", "tool_integrations"):
        assert stack.one(f"SELECT count(*) FROM {table} x WHERE x::text LIKE %s", f"%{CANARY}%") == 0
