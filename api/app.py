"""The application: what it opens, and the endpoints on it. `uvicorn api.app:app` reads its settings from the environment."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pydantic
from fastapi import FastAPI
from fastapi.routing import APIRoute

from api import docs, errors, openapi
from api.auth import Keys
from api.backpressure import LoadMonitor
from api.dependencies import AppState
from api.routes import (
    agents,
    analytics,
    approvals,
    budgets,
    cancelling,
    events,
    health,
    holds,
    messages,
    metrics,
    repair,
    satisfaction,
    sessions,
    stream,
    tools,
    turns,
)
from failpoints import refuse_a_normal_start
from observability import logs
from realtime.publisher import Publisher
from realtime.subscriber import Subscriber
from settings import Settings, get_settings
from store.database import Database
from store.encryption import SecretBox
from tasks.dispatcher import Dispatcher


def create_app(settings: Settings) -> FastAPI:
    """The application for `settings`. Opens nothing before it is started, and waits for no server then.

    Raises:
        ValueError: a setting cannot be used; the sentence says which.
    """
    from tasks.celery_app import make_app  # here, because importing it reads the environment

    _check(settings)
    box = SecretBox(settings.secret_keys.get_secret_value())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        celery = make_app(settings)
        # Who calls over HTTP is told to come back sooner than a turn would be given up.
        database = Database(settings.database_url, pool_size=settings.db_pool_size, application_name="turnline-api", wait_s=5)
        dispatcher = Dispatcher(celery, settings.database_url)
        publisher, subscriber, keys = Publisher(settings.realtime_url), Subscriber(settings.realtime_url), Keys(database)
        load_monitor = LoadMonitor(settings, database)
        app_state = AppState(settings, database, keys, box, publisher, subscriber, dispatcher, load_monitor)
        app_state.stopping.then(subscriber.nudge)
        app.state.app_state = app_state
        app.state.readiness = health.Readiness(database, celery)
        await database.open()
        await publisher.open()
        await subscriber.open()
        dispatcher.start()
        await load_monitor.start()
        try:
            with app_state.stopping.on_signals():
                yield
        finally:
            app_state.stopping.set()
            await load_monitor.stop()
            await asyncio.to_thread(dispatcher.close)
            await subscriber.close()
            await publisher.close()
            await keys.close()
            await database.close()
            celery.close()

    app = FastAPI(
        title="Turnline",
        version="0.1.0",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # another address is another thing, and a redirected POST may lose its body or its key
        generate_unique_id_function=_operation_id,
    )
    for room in (
        agents,
        analytics,
        tools,
        sessions,
        messages,
        events,
        stream,
        turns,
        cancelling,
        approvals,
        budgets,
        repair,
        holds,
        satisfaction,
        health,
        metrics,
    ):
        app.include_router(room.routes)
    errors.install(app)
    metrics.install(app, settings)
    openapi.install(app)
    docs.install(app)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


def _check(settings: Settings) -> None:
    missing = [name for name, value in (("DATABASE_URL", settings.database_url), ("CELERY_BROKER_URL", settings.broker_url)) if not value]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be set in the environment before the API can start.")


def _from_environment() -> FastAPI:
    refuse_a_normal_start()
    try:
        settings = get_settings()
        logs.setup(settings.log_level)
        return create_app(settings)
    except pydantic.ValidationError as error:
        # Names and reasons; the values may be secret.
        found = "; ".join(f"{item['loc'][0]}: {item['msg']}" for item in error.errors(include_url=False, include_input=False))
        sys.exit(f"The API cannot start with these settings. {found}")
    except ValueError as error:
        sys.exit(str(error))


def __getattr__(name: str) -> Any:
    """`app`, made when a server asks for it: importing this module reads no environment."""
    if name != "app":
        raise AttributeError(name)
    made = globals()["app"] = _from_environment()
    return made
