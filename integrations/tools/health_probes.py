"""Probe a tool integration and say in one sentence why it is unhealthy."""

from __future__ import annotations

from engine.errors import Rejected, TurnlineError
from engine.tools.spec import IntegrationSpec
from integrations.http import HttpClients
from integrations.tools.registry import integration_for


async def probe(spec: IntegrationSpec, http_clients: HttpClients, deadline_s: float) -> str | None:
    """Return None if the integration answered, else the reason, which contains no secret.

    An integration of an unknown type counts as healthy, because it cannot be probed.
    """
    integration = integration_for(spec.integration_type, http_clients)
    if integration is None:
        return None
    try:
        await integration.probe(spec, deadline_s=deadline_s)
    except Rejected as error:
        return f"It is not set up correctly: {error}"
    except TurnlineError as error:
        return str(error)
    return None
