"""Errors as RFC 9457 problem documents. Clients see what they can act on; our own faults are logged and not shown."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import psycopg
import sqlalchemy.exc
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.responses import encode_json
from engine.errors import Conflict, NotFound, RateLimited, Rejected, TurnlineError
from store.catalog.agents import Stale
from store.database import UNAVAILABLE

log = logging.getLogger(__name__)

RETRY_AFTER_S = 2
CODES = {
    400: "BAD_REQUEST",
    401: "UNAUTHORIZED",
    403: "ACCESS_DENIED",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    409: "CONFLICT",
    412: "PRECONDITION_FAILED",
    413: "TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    422: "VALIDATION_ERROR",
    429: "RATE_LIMITED",
    500: "INTERNAL_ERROR",
    503: "UNAVAILABLE",
}
_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
_STATUS_OF: Mapping[type[TurnlineError], int] = {NotFound: 404, Stale: 412, Conflict: 409, Rejected: 422, RateLimited: 429}


class Problem(Exception):
    """An error response. `errors` are pairs of a place and a message; `members` are added to the document."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, errors, headers
        self.members = members or {}


def respond(scope: Scope, problem: Problem) -> Response:
    """Return the problem document for a request."""
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "instance": quote(scope.get("path", ""), safe="/:@!$&'()*+,;=~-._"),
        "code": CODES.get(problem.status, HTTPStatus(problem.status).name),
        "errors": [{"where": place, "what": message} for place, message in problem.errors],
        **problem.members,
    }
    return Response(encode_json(document), problem.status, dict(problem.headers or {}), "application/problem+json")


def unavailable() -> Problem:
    """Return the problem for a database that cannot be used."""
    return Problem(
        503, "The service cannot reach its database at the moment; try again shortly.", headers={"Retry-After": str(RETRY_AFTER_S)}
    )


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document."""

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)  # noqa: S101 - registered for it
        return respond(request.scope, error)

    async def on_turnline_error(request: Request, error: Exception) -> Response:
        status = next((status for kind, status in _STATUS_OF.items() if isinstance(error, kind)), None)
        if status is None:
            raise error
        after_s = error.retry_after_s if isinstance(error, RateLimited) else None
        headers = None if after_s is None else {"Retry-After": str(max(1, math.ceil(after_s)))}
        return respond(request.scope, Problem(status, _sentence(str(error)), headers=headers))

    async def on_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
        found = [(_place(item["loc"]), _message(item)) for item in error.errors()]
        detail = f"{found[0][0]}: {found[0][1]}" if len(found) == 1 else f"The request has {len(found)} errors."
        return respond(request.scope, Problem(422, detail, errors=found))

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
        headers = {**(error.headers or {}), **({"Allow": _allowed(request)} if error.status_code == 405 else {})}
        details = {404: "There is no endpoint at this path.", 405: f"{request.method} is not allowed at this path."}
        detail = details.get(error.status_code, str(error.detail))
        return respond(request.scope, Problem(error.status_code, detail, headers=headers))

    async def on_database_unavailable(request: Request, error: Exception) -> Response:
        log.warning("The database is unavailable: %s", type(error).__name__)
        return respond(request.scope, unavailable())

    async def on_data_error(request: Request, error: Exception) -> Response:
        # A last resort: every value known to end here is refused earlier, with its place.
        log.warning("The database refused a value that had passed validation: %s", type(error).__name__)
        return respond(request.scope, Problem(422, "A value in the request cannot be stored."))

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(TurnlineError, on_turnline_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    for kind in UNAVAILABLE:
        app.add_exception_handler(kind, on_database_unavailable)
    for kind in (psycopg.DataError, sqlalchemy.exc.DataError):
        app.add_exception_handler(kind, on_data_error)
    app.add_middleware(UnexpectedErrors)


class UnexpectedErrors:
    """Middleware that answers an unexpected exception with a plain 500, and logs where it was raised."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        started = False

        async def tracking_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, tracking_send)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - the last handler before the server
            # Only the frames and the exception's class: its message may quote a customer.
            frames = "".join(traceback.format_tb(error.__traceback__)[-8:])
            log.error("Unexpected error in %s %s: %s\n%s", scope["method"], _template(scope), type(error).__name__, frames)  # noqa: TRY400
            if not started:
                await respond(scope, Problem(500, "An internal error occurred; it has been logged."))(scope, receive, send)


def _allowed(request: Request) -> str:
    """Return the methods of all routes at the request's path; the framework names those of one route only."""

    def offered(method: str) -> bool:
        return any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)

    return ", ".join(filter(offered, _METHODS))


def _template(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", "?"))


def _sentence(text: str) -> str:
    if "_" not in text.partition(" ")[0]:  # a field's name keeps its case
        text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _place(location: Sequence[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")[:200]


def _message(item: Mapping[str, Any]) -> str:
    return _sentence(str(item["msg"]).removeprefix("Value error, "))[:500]
