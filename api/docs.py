"""The API's reference at /docs: one page without outside assets, drawn from /openapi.json, where a GET can be tried."""

from __future__ import annotations

import base64
import re
from hashlib import sha256
from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import HTMLResponse


def install(app: FastAPI) -> None:
    """Serve the page at /docs."""
    page = files("api").joinpath("reference.html").read_text("utf-8")
    headers = {
        "Content-Security-Policy": policy(page),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    @app.get("/docs", include_in_schema=False)
    async def reference() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)


def policy(page: str) -> str:
    """The Content-Security-Policy under which `page` may run its own style and script, speak to its own server, and nothing else.

    Somebody pastes an API key into the page, so nothing that slipped into it may run or send anything elsewhere.
    """
    style, script = (_hashes(page, tag) for tag in ("style", "script"))
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(page: str, tag: str) -> str:
    inside = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'" for text in inside)
