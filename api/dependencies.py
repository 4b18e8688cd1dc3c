"""What the endpoints stand on: the open connections of the process, the route class that guards them, the caller of a request."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from api.auth import Keys, authenticate, authorise
from api.backpressure import LoadMonitor
from api.body_limits import GuardedRequest
from api.openapi import PROBLEMS
from api.shutdown import Stopping
from realtime.publisher import Publisher
from realtime.subscriber import Subscriber
from settings import Settings
from store.catalog.workspaces import Caller
from store.database import Database
from store.encryption import SecretBox


class Dispatch(Protocol):
    """Rings for turns; returns at once and never raises (see `tasks.dispatcher.Ringer`)."""

    def dispatch(self, turn_id: UUID) -> None:
        """Ring for `turn_id`, soon."""


@dataclass(slots=True)
class AppState:
    """What an API process keeps open."""

    settings: Settings
    database: Database
    keys: Keys
    box: SecretBox
    publisher: Publisher
    subscriber: Subscriber
    dispatcher: Dispatch
    load_monitor: LoadMonitor
    stopping: Stopping = field(default_factory=Stopping)


class GuardedRoute(APIRoute):
    """A route that asks who calls before it reads the body, and reads the body before it does anything else."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler behind the guard."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            app_state: AppState = request.app.state.app_state
            caller = await authenticate(request, app_state.keys)
            authorise(caller, write=request.method not in ("GET", "HEAD"))
            request = GuardedRequest(request.scope, request.receive)
            request.state.caller = caller
            if request.method in ("POST", "PUT", "PATCH"):
                await request.take(app_state.settings.request_max_bytes)
            return await handle(request)

        return guarded


_scheme = HTTPBearer(scheme_name="ApiKey", bearerFormat="tl_…", description="An API key of a workspace.", auto_error=False)


async def _front(request: Request) -> AppState:
    app_state: AppState = request.app.state.app_state
    return app_state


async def _caller(request: Request, _: Annotated[object, Security(_scheme)]) -> Caller:
    caller: Caller = request.state.caller
    return caller


AppStateDep = Annotated[AppState, Depends(_front)]
CallerDep = Annotated[Caller, Depends(_caller)]


def router(tag: str) -> APIRouter:
    """A router of guarded routes under /v1."""
    return APIRouter(prefix="/v1", tags=[tag], route_class=GuardedRoute, responses=PROBLEMS)
