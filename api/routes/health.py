"""Liveness and readiness. Both need no API key, so they reveal little."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.errors import Problem, respond
from api.openapi import problem
from api.readiness import OK, Readiness
from api.responses import Json
from api.schemas import health as schemas

_NO_STORE = {"Cache-Control": "no-store"}

routes = APIRouter(tags=["health"])


@routes.get("/healthz", response_model=schemas.Health)
async def healthz() -> Response:
    """Answer if the process is alive."""
    return Json({"status": "ok"}, headers=_NO_STORE)


@routes.get("/readyz", response_model=schemas.Readiness, responses={503: problem("Not ready; `checks` says why.")})
async def readyz(request: Request) -> Response:
    """Tell whether the database answers and has the newest schema, and whether the broker answers."""
    readiness: Readiness = request.app.state.readiness
    checks = await readiness.check()
    failed = [(name, reason) for name, reason in checks.items() if reason != OK]
    if not failed:
        return Json({"status": "ready", "checks": checks}, headers=_NO_STORE)
    detail = f"Not ready: {'; '.join(reason for _, reason in failed)}."
    return respond(request.scope, Problem(503, detail, errors=failed, headers=_NO_STORE, members={"checks": checks}))
