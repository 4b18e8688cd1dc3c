"""Dependencies of the endpoints: the process's open connections, the caller, and the route class that guards every request."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from api.auth import ApiKeys, authenticate, authorise
from api.backpressure import LoadMonitor
from api.body_limits import GuardedRequest
from api.openapi import PROBLEMS
from api.shutdown import Shutdown
from realtime.event_reader import EventReader
from realtime.publisher import Publisher
from realtime.subscriber import Subscriber
from settings import Settings
from store.catalog import workspaces
from store.catalog.workspaces import Caller
from store.database import Database
from store.encryption import SecretBox
from tasks.dispatcher import Dispatcher


@dataclass(slots=True)
class AppState:
    """The connections and background workers of an API process."""

    settings: Settings
    database: Database
    keys: ApiKeys
    box: SecretBox
    publisher: Publisher
    subscriber: Subscriber
    reader: EventReader
    dispatcher: Dispatcher
    load_monitor: LoadMonitor
    stopping: Shutdown = field(default_factory=Shutdown)

    async def signature(self, caller: Caller) -> str:
        """Return the caller's name as it is kept with a decision: the key's name and prefix, and its user."""
        async with self.database.transaction(caller.workspace_id) as db:
            return await workspaces.signature(db, caller)

    def after_commit(self, session_id: UUID, *, offset: int | None, to_dispatch: UUID | None) -> None:
        """Publish that the log advanced to `offset`, and dispatch a turn. Returns at once and never raises."""
        if offset is not None:
            self.publisher.log_advanced(session_id, offset)
        if to_dispatch is not None:
            self.dispatcher.dispatch(to_dispatch)


class GuardedRoute(APIRoute):
    """A route that authenticates before it reads the body, and checks the body before anything else happens."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the route's handler with the checks in front of it."""
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


async def _app_state(request: Request) -> AppState:
    app_state: AppState = request.app.state.app_state
    return app_state


async def _caller(request: Request, _: Annotated[object, Security(_scheme)]) -> Caller:
    caller: Caller = request.state.caller
    return caller


AppStateDep = Annotated[AppState, Depends(_app_state)]
CallerDep = Annotated[Caller, Depends(_caller)]


def router(tag: str) -> APIRouter:
    """Return a router of guarded routes under /v1."""
    return APIRouter(prefix="/v1", tags=[tag], route_class=GuardedRoute, responses=PROBLEMS)
