"""The application: its connections and its endpoints. `uvicorn api.app:app` reads the settings from the environment."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pydantic
from fastapi import FastAPI
from fastapi.routing import APIRoute

from api import docs, errors, openapi, request_metrics
from api.auth import ApiKeys
from api.backpressure import LoadMonitor
from api.dependencies import AppState
from api.readiness import Readiness
from api.routes import agents, analytics, approvals, budgets, events, health, messages, metrics, sessions, stream, tools, turns
from failpoints import refuse_a_normal_start
from observability import logs
from realtime.event_reader import EventReader
from realtime.publisher import Publisher
from realtime.subscriber import Subscriber
from settings import Settings, __version__, get_settings
from store.database import Database
from store.encryption import SecretBox
from tasks.dispatcher import Dispatcher


def create_app(settings: Settings) -> FastAPI:
    """Return the application for `settings`. It opens its connections on startup, without waiting for any server.

    Raises:
        ValueError: a setting is missing or invalid; the message says which.
    """
    from tasks.celery_app import make_app  # imported here because importing it reads the environment

    _require(settings)
    box = SecretBox(settings.secret_keys.get_secret_value())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        celery = make_app(settings)
        # HTTP clients get a 503 after 5 s without a free connection; they can repeat the request.
        database = Database(settings.database_url, pool_size=settings.db_pool_size, application_name="turnline-api", wait_s=5)
        dispatcher = Dispatcher(celery, settings.database_url)
        publisher, subscriber, keys = Publisher(settings.realtime_url), Subscriber(settings.realtime_url), ApiKeys(database)
        reader = EventReader(database, subscriber)
        load_monitor = LoadMonitor(settings, database)
        app_state = AppState(settings, database, keys, box, publisher, subscriber, reader, dispatcher, load_monitor)
        app_state.stopping.add_callback(reader.stop)
        app.state.app_state = app_state
        app.state.readiness = Readiness(database, celery)
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
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect can drop a POST's body and Authorization header
        generate_unique_id_function=_operation_id,
    )
    for module in (agents, analytics, tools, sessions, messages, events, stream, turns, approvals, budgets, health, metrics):
        app.include_router(module.routes)
    errors.install(app)
    request_metrics.install(app, settings)
    openapi.install(app)
    docs.install(app)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


def _require(settings: Settings) -> None:
    missing = [name for name, value in (("DATABASE_URL", settings.database_url), ("CELERY_BROKER_URL", settings.broker_url)) if not value]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be set in the environment before the API can start.")


def _app_from_environment() -> FastAPI:
    refuse_a_normal_start()
    try:
        settings = get_settings()
        logs.setup(settings.log_level)
        return create_app(settings)
    except pydantic.ValidationError as error:
        # Names and reasons only; the values may be secret.
        found = "; ".join(f"{item['loc'][0]}: {item['msg']}" for item in error.errors(include_url=False, include_input=False))
        sys.exit(f"Cannot start the API, invalid settings: {found}")
    except ValueError as error:
        sys.exit(str(error))


def __getattr__(name: str) -> Any:
    """Return `app`, created when a server first asks for it, so that importing this module reads no environment."""
    if name != "app":
        raise AttributeError(name)
    app = globals()["app"] = _app_from_environment()
    return app
