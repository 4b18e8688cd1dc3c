"""What every operation's description has in common: its problems, and how the caller shows a key."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

DESCRIPTION = """
Runs the agent's side of conversations. A customer's message is posted to a session and answered with 202; the turn it opened is carried
by a worker, and its events appear in the session's log.

Every list is paged: send `next_cursor` back as `after`. Times are UTC. Money is text, in US dollars. What belongs to another workspace is
not found. Bodies may have 262,144 bytes, 64 levels and 10,000 keys; integers beyond 2^53 are kept as text.
"""

PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "What went wrong (RFC 9457).",
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "code", "errors"],
    "properties": {
        "type": {"type": "string", "examples": ["about:blank"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "A sentence for a person."},
        "instance": {"type": "string", "description": "The address that was asked."},
        "code": {"type": "string", "description": "A word for a program.", "examples": ["VALIDATION_ERROR"]},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["where", "what"],
                "properties": {"where": {"type": "string"}, "what": {"type": "string"}},
            },
        },
    },
}


def problem(description: str) -> dict[str, Any]:
    """A response that is a problem document."""
    return {"description": description, "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: problem("The body is not JSON."),
    401: problem("No API key, or one that is not known or was revoked."),
    403: problem("The key may not do this."),
    404: problem("No such thing in this workspace."),
    413: problem("The body is too long."),
    415: problem("The body is not JSON by its type."),
    422: problem("Something in the request is not acceptable; `errors` says where and what."),
    503: problem("The database does not answer; try again after `Retry-After` seconds."),
}
CONFLICT: dict[int | str, dict[str, Any]] = {409: problem("It contradicts what is there already.")}
TOO_MUCH: dict[int | str, dict[str, Any]] = {
    429: {
        **problem(
            "Too much is open in the session, in the workspace or in all; `detail` says what. Try again after `Retry-After` seconds."
        ),
        "headers": {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}},
    }
}
PRECONDITION: dict[int | str, dict[str, Any]] = {412: problem("It has changed meanwhile: `If-Match` names another version.")}


def install(app: FastAPI) -> None:
    """Describe `app` by OpenAPI 3.1, made once."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title="Turnline", version=app.version, description=DESCRIPTION, routes=app.routes, openapi_version="3.1.0")
            schema.setdefault("components", {}).setdefault("schemas", {})["Problem"] = PROBLEM
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
