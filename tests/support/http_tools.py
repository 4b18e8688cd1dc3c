"""An HTTP tool under test, and one call of it."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from engine.enums import Effect
from engine.events import ToolCall, ToolOutcome
from engine.tools.spec import IntegrationSpec, ToolSpec
from integrations.executor import Performer
from tests.support.http_servers import Server, response

PARAMETERS = {"type": "object", "properties": {"order": {"type": ["integer", "string"]}}, "required": ["order"]}
SECRET = "s3cr3t-canary"
OK = response({"paid": True})


def make_tool(
    server: Server | str,
    effect: Effect = Effect.UNSAFE,
    *,
    path: str = "/orders",
    parameters: Any = PARAMETERS,
    return_schema: Any = None,
    parameter_mapping: Any = None,
    response_mapping: Any = None,
    secrets: dict[str, str] | None = None,
    **configuration: Any,
) -> ToolSpec:
    """Return the tool `orders.lookup` with one integration, at `path` of `server`."""
    url = (server if isinstance(server, str) else server.url) + path
    spec = IntegrationSpec(uuid4(), "custom_tool", {"url": url, **configuration}, parameter_mapping, response_mapping, secrets or {})
    return ToolSpec(uuid4(), "orders.lookup", "Look an order up.", parameters, return_schema, effect=effect, integrations=(spec,))


async def call_tool(
    performer: Performer, tool: ToolSpec, arguments: Any = None, *, deadline_s: float = 20.0, begun: bool = False
) -> ToolOutcome:
    """Call `tool` with the idempotency key "key-1", by default for order 41; assert that the outcome contains no secret."""
    call = ToolCall("call_1", tool.name, {"order": 41} if arguments is None else arguments)
    outcome = await performer.use_tool(tool, call, "key-1", deadline_s, begun=begun)
    assert SECRET not in repr(outcome)
    return outcome
