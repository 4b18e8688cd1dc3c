"""Errors as RFC 9457 problem documents. What the caller can act on is said; what is ours to mend is logged and not shown."""

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
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.responses import text_of
from engine.errors import Conflict, NotFound, RateLimited, Rejected, TurnlineError
from store.catalog.agents import Stale

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
AWAY: tuple[type[Exception], ...] = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    PoolTimeout,
    PoolClosed,
    TooManyRequests,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
)
_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
_ENGINE: Mapping[type[TurnlineError], int] = {NotFound: 404, Stale: 412, Conflict: 409, Rejected: 422, RateLimited: 429}


class Problem(Exception):
    """A refusal. `errors` are pairs of where and what; `members` go into the document beside the usual ones."""

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
    """The problem document for a request."""
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "instance": quote(scope.get("path", ""), safe="/:@!$&'()*+,;=~-._"),
        "code": CODES.get(problem.status, HTTPStatus(problem.status).name),
        "errors": [{"where": where, "what": what} for where, what in problem.errors],
        **problem.members,
    }
    return Response(text_of(document), problem.status, dict(problem.headers or {}), "application/problem+json")


def unavailable() -> Problem:
    """The database does not answer."""
    return Problem(
        503, "The service cannot reach its database just now; try again in a moment.", headers={"Retry-After": str(RETRY_AFTER_S)}
    )


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document."""

    async def problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)  # noqa: S101 - registered for it
        return respond(request.scope, error)

    async def ours(request: Request, error: Exception) -> Response:
        status = next((status for kind, status in _ENGINE.items() if isinstance(error, kind)), None)
        if status is None:
            raise error
        after_s = error.retry_after_s if isinstance(error, RateLimited) else None
        headers = None if after_s is None else {"Retry-After": str(max(1, math.ceil(after_s)))}
        return respond(request.scope, Problem(status, _sentence(str(error)), headers=headers))

    async def validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
        found = [(_where(item["loc"]), _what(item)) for item in error.errors()]
        detail = f"{found[0][0]}: {found[0][1]}" if len(found) == 1 else f"{len(found)} things in the request are not acceptable."
        return respond(request.scope, Problem(422, detail, errors=found))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
        headers = {**(error.headers or {}), **({"Allow": _allowed(request)} if error.status_code == 405 else {})}
        details = {404: "There is nothing at this address.", 405: f"{request.method} is not offered at this address."}
        detail = details.get(error.status_code, str(error.detail))
        return respond(request.scope, Problem(error.status_code, detail, headers=headers))

    async def away(request: Request, error: Exception) -> Response:
        log.warning("the database could not be used: %s", type(error).__name__)
        return respond(request.scope, unavailable())

    async def unstorable(request: Request, error: Exception) -> Response:
        # A backstop: every known way here is refused earlier, with a place.
        log.warning("the database refused a value that the checks let through: %s", type(error).__name__)
        return respond(request.scope, Problem(422, "Something in the request cannot be stored."))

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(TurnlineError, ours)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
    for kind in AWAY:
        app.add_exception_handler(kind, away)
    for kind in (psycopg.DataError, sqlalchemy.exc.DataError):
        app.add_exception_handler(kind, unstorable)
    app.add_middleware(Unexpected)


class Unexpected:
    """Turns what nobody foresaw into a 500 that tells the caller nothing, and a log line that tells us where."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, noting)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - the last place before the server
            # Frames and the type, not the message: it may quote what a customer wrote.
            frames = "".join(traceback.format_tb(error.__traceback__)[-8:])
            log.error("a bug stopped %s %s: %s\n%s", scope["method"], _template(scope), type(error).__name__, frames)  # noqa: TRY400
            if not started:
                await respond(scope, Problem(500, "Something went wrong here; it has been logged."))(scope, receive, send)


def _allowed(request: Request) -> str:
    """The methods offered at the request's address; the framework names those of one route only."""

    def offered(method: str) -> bool:
        return any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)

    return ", ".join(filter(offered, _METHODS))


def _template(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", "?"))


def _sentence(text: str) -> str:
    if "_" not in text.partition(" ")[0]:  # a field's name stays as it is written
        text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _where(place: Sequence[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")[:200]


def _what(item: Mapping[str, Any]) -> str:
    return _sentence(str(item["msg"]).removeprefix("Value error, "))[:500]
