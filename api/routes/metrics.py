"""Metrics for Prometheus: the requests this process answered, and how the work of all workspaces stands."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import GC_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import Problem, respond
from api.openapi import problem
from observability.database_metrics import Gauges, refusal
from settings import Settings
from store.operations import system_stats

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})

routes = APIRouter(tags=["health"])


class Meters:
    """What one application counts, and its registry."""

    def __init__(self, settings: Settings) -> None:
        self.registry = CollectorRegistry()
        self.token = settings.metrics_token.get_secret_value()
        labels = ["method", "route"]
        self._requests = Counter("turnline_http_requests", "Requests answered.", [*labels, "status"], registry=self.registry)
        self._seconds = Histogram(
            "turnline_http_request_duration_seconds", "Until the answer began.", labels, registry=self.registry, buckets=BUCKETS
        )
        self.under_way = Gauge("turnline_http_requests_under_way", "Requests being answered, streams among them.", registry=self.registry)
        for collector in (PROCESS_COLLECTOR, GC_COLLECTOR, Gauges(lambda: system_stats.read(settings.database_url))):
            self.registry.register(collector)

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """Count an answer. What no route matched counts as one, whatever its address."""
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = getattr(scope.get("route"), "path", "none")
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class Counting:
    """Counts requests as they are answered."""

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self._app, self._meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and look at the status of its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._meters.answered(scope, message["status"], time.perf_counter() - began)
            await send(message)

        self._meters.under_way.inc()
        try:
            await self._app(scope, receive, counted)
        finally:
            self._meters.under_way.dec()


def install(app: FastAPI, settings: Settings) -> None:
    """Count what `app` answers."""
    meters = app.state.meters = Meters(settings)
    app.add_middleware(Counting, meters=meters)


@routes.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"description": "The metrics, in Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        401: problem("`TURNLINE_METRICS_TOKEN` is set, and was not shown."),
        403: problem("It is not set, and the request is not from this machine."),
    },
)
async def metrics(request: Request) -> Response:
    """What Prometheus asks for: requests, open turns, leases, integrations by health, jobs. Of no tenant; for operators only."""
    meters: Meters = request.app.state.meters
    peer = request.client.host if request.client else ""
    refused = refusal(peer, request.headers, meters.token)
    if refused is not None:
        status, sentence = refused
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        return respond(request.scope, Problem(status, sentence, headers=headers))
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    body = await asyncio.to_thread(encode, meters.registry)
    return Response(body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})
