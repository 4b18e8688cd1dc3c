"""Calls of tools by the executor, over real sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

from engine.enums import Effect
from engine.events import ToolCall, ToolOutcome
from engine.turn.context import IntegrationSpec, ToolSpec
from integrations.executor import Performer
from integrations.http import HttpClients
from tests.support.http_servers import Server, response

MakeOutside = Callable[..., HttpClients]
PARAMETERS = {"type": "object", "properties": {"order": {"type": ["integer", "string"]}}, "required": ["order"]}
SECRET = "s3cr3t-canary"
OK = response({"paid": True})


def tool(
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
    url = (server if isinstance(server, str) else server.url) + path
    spec = IntegrationSpec(uuid4(), "custom_tool", {"url": url, **configuration}, parameter_mapping, response_mapping, secrets or {})
    return ToolSpec(uuid4(), "orders.lookup", "Look an order up.", parameters, return_schema, effect=effect, integrations=(spec,))


async def call(
    performer: Performer, what: ToolSpec, arguments: Any = None, *, deadline_s: float = 20.0, begun: bool = False
) -> ToolOutcome:
    asked = ToolCall("call_1", what.name, {"order": 41} if arguments is None else arguments)
    outcome = await performer.use_tool(what, asked, "key-1", deadline_s, begun=begun)
    assert SECRET not in repr(outcome)
    return outcome
