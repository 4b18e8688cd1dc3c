"""Type of the fixture `make_clients`, which makes an `HttpClients` from settings."""

from __future__ import annotations

from collections.abc import Callable

from integrations.http import HttpClients

MakeHttpClients = Callable[..., HttpClients]
