"""The parts of the OpenAPI document that all operations share: the introduction, and the problem responses."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

DESCRIPTION = """
Runs the agent's side of conversations. A customer's message is posted to a session and answered with 202; a worker runs the turn that it
opened, and the turn's events appear in the session's log.

Every list is paged: send `next_cursor` back as `after`. Times are UTC. Money is text, in US dollars. Objects of another workspace are
answered with 404. Bodies are limited to 262,144 bytes, 64 levels and 10,000 keys; integers beyond 2^53 are stored as text.
"""

PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "An error (RFC 9457).",
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "code", "errors"],
    "properties": {
        "type": {"type": "string", "examples": ["about:blank"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "A sentence for people."},
        "instance": {"type": "string", "description": "The path of the request."},
        "code": {"type": "string", "description": "A word for programs.", "examples": ["VALIDATION_ERROR"]},
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
    """Return the description of a problem response."""
    return {"description": description, "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: problem("The body is not valid JSON."),
    401: problem("The API key is missing, unknown or revoked."),
    403: problem("The API key does not allow this."),
    404: problem("The workspace has no such object."),
    413: problem("The body is too long."),
    415: problem("The body's content type is not JSON."),
    422: problem("The request is invalid; `errors` lists places and reasons."),
    503: problem("The database is unavailable; try again after `Retry-After` seconds."),
}
CONFLICT: dict[int | str, dict[str, Any]] = {409: problem("Conflicts with the current state.")}
TOO_MANY_OPEN: dict[int | str, dict[str, Any]] = {
    429: {
        **problem(
            "Too many turns are open in the session, the workspace or the service; `detail` says which. Try again after `Retry-After` "
            "seconds."
        ),
        "headers": {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}},
    }
}
PRECONDITION: dict[int | str, dict[str, Any]] = {412: problem("`If-Match` names another version: the object has changed.")}


def install(app: FastAPI) -> None:
    """Make `app` describe itself as OpenAPI 3.1; the document is built once."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title="Turnline", version=app.version, description=DESCRIPTION, routes=app.routes, openapi_version="3.1.0")
            schema.setdefault("components", {}).setdefault("schemas", {})["Problem"] = PROBLEM
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
