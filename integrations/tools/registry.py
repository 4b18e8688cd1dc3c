"""The tool integrations, by `integration_type`."""

from __future__ import annotations

from collections.abc import Callable

from engine.enums import IntegrationType
from integrations.http import HttpClients
from integrations.tools.base import Integration
from integrations.tools.http.client import HttpTool

_INTEGRATIONS: dict[str, Callable[[HttpClients], Integration]] = {
    IntegrationType.CUSTOM_TOOL: HttpTool,
}


def integration_for(integration_type: str, http_clients: HttpClients) -> Integration | None:
    """Return the integration of this type, or None if the type is unknown."""
    make = _INTEGRATIONS.get(integration_type)
    return make(http_clients) if make is not None else None
