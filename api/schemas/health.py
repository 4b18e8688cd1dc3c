"""Liveness and readiness."""

from __future__ import annotations

from typing import Literal

from api.schemas.common import ResponseBody


class Health(ResponseBody):
    """The process is alive."""

    status: Literal["ok"]


class Readiness(ResponseBody):
    """The process is ready: every check is `ok`."""

    status: Literal["ready"]
    checks: dict[str, str]
