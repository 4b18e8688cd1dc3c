"""Flower, with a login required for everything, and queue lengths read from whichever broker is configured.

By default Flower serves `/metrics`, `/healthcheck` and its static files to anybody, everything if no login is configured, and RabbitMQ's
queues only through the management plugin. `require_login` changes that before Flower builds its application. Celery's command line loads
Flower before our app, so it works for `celery -A tasks flower` as well as for `turnline flower`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from typing import Any

from flower import urls
from flower.views import BaseHandler, auth, monitor
from flower.views.error import NotFoundErrorHandler
from flower.views.tasks import TasksDataTable
from tornado.routing import URLSpec
from tornado.web import HTTPError, RequestHandler, StaticFileHandler

from observability.queue_depth import depths
from worker.dead_letters import dead_letters_of

READS = ("GET", "HEAD")
_BASE: Any = BaseHandler  # for handlers that do not derive from it, such as the one for static files
# With OAuth, Flower's other handlers redirect to the login; these have to answer 403.
_WITHOUT_LOGIN_PAGE = (monitor.Metrics, monitor.Healthcheck, NotFoundErrorHandler, StaticFileHandler)


def require_login() -> None:
    """Make every handler of Flower require a login. Safe to call again."""
    urls.handlers[:] = [_guarded_entry(entry) for entry in urls.handlers]
    urls.settings["static_handler_class"] = _guarded(StaticFileHandler)


def _guarded_entry(entry: Any) -> Any:
    if isinstance(entry, URLSpec):
        entry.handler_class = entry.target = _guarded(entry.handler_class)
        return entry
    pattern, handler, *rest = entry
    return (pattern, _Login if handler in (auth.LoginHandler, _Login) else _guarded(handler), *rest)


@cache
def _guarded(handler: type[RequestHandler]) -> type[RequestHandler]:
    if issubclass(handler, _Guarded):
        return handler
    return type(handler.__name__, (_Guarded, handler), {"original": handler})


class _Guarded(RequestHandler):
    """Refuses requests without a login and, in read-only mode, changes, before the handler runs."""

    original: type[RequestHandler]

    def get_current_user(self) -> Any:
        return _BASE.get_current_user(self)

    def prepare(self) -> Any:
        """Let the handler begin.

        Raises:
            HTTPError: 401 or 403.
        """
        options = self.application.options  # type: ignore[attr-defined]
        if not (options.basic_auth or options.auth):
            raise HTTPError(403, "Flower needs a password: set TURNLINE_FLOWER_BASIC_AUTH=user:password.")
        if not self.current_user and (issubclass(self.original, _WITHOUT_LOGIN_PAGE) or self.request.method not in READS):
            raise HTTPError(403)
        if options.read_only and self.request.method not in READS and self.original is not TasksDataTable:
            raise HTTPError(403, "Flower is read-only here.")
        return super().prepare()

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if status_code == 401:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        super().write_error(status_code, **kwargs)

    def get_broker(self) -> Any:
        """Return the object that reads the lengths of the queues."""
        if self.application.options.broker_api:  # type: ignore[attr-defined]
            return _BASE.get_broker(self)
        return _Broker(self.application.capp)  # type: ignore[attr-defined]


class _Login(auth.LoginHandler):
    """The login page if one is configured; otherwise a 404 behind the guard."""

    def __new__(cls, application: Any, *args: Any, **kwargs: Any) -> Any:
        if application.options.auth:
            return super().__new__(cls, application, *args, **kwargs)
        return _guarded(NotFoundErrorHandler)(application, *args, **kwargs)


class _Broker:
    """The broker's queues, in the form that Flower's page needs."""

    def __init__(self, capp: Any) -> None:
        self._capp = capp

    async def queues(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the queues of `names` and all of ours, RabbitMQ's dead letters included. Raises what the transport raises."""
        ours = [queue.name for queue in self._capp.conf.task_queues]
        requested = sorted({*names, *ours})
        if str(self._capp.conf.broker_url).startswith(("amqp", "pyamqp")):
            requested += [dead_letters_of(name) for name in ours]
        found = await asyncio.get_running_loop().run_in_executor(None, depths, self._capp, requested)
        return [
            {"name": name, "messages": depth.messages, "messages_ready": depth.messages, "consumers": depth.consumers}
            for name, depth in found.items()
        ]
