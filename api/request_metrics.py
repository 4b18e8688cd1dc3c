"""Counts and times requests for Prometheus."""

from __future__ import annotations

import time

from fastapi import FastAPI
from prometheus_client import GC_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from observability.database_metrics import Gauges
from settings import Settings
from store.operations import system_stats

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})


class RequestMetrics:
    """The metrics of one application, and their registry."""

    def __init__(self, settings: Settings) -> None:
        self.registry = CollectorRegistry()
        self.token = settings.metrics_token.get_secret_value()
        labels = ["method", "route"]
        self._requests = Counter("turnline_http_requests", "Requests answered.", [*labels, "status"], registry=self.registry)
        self._seconds = Histogram(
            "turnline_http_request_duration_seconds",
            "Seconds until the response started.",
            labels,
            registry=self.registry,
            buckets=BUCKETS,
        )
        self.in_progress = Gauge("turnline_http_requests_under_way", "Requests in progress, including streams.", registry=self.registry)
        for collector in (PROCESS_COLLECTOR, GC_COLLECTOR, Gauges(lambda: system_stats.read(settings.database_url))):
            self.registry.register(collector)

    def record(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a response. All paths that match no route share one label."""
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = getattr(scope.get("route"), "path", "none")
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class CountRequests:
    """Middleware that counts requests as they are answered."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, and record the status of its response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def recording_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.record(scope, message["status"], time.perf_counter() - began)
            await send(message)

        self._metrics.in_progress.inc()
        try:
            await self._app(scope, receive, recording_send)
        finally:
            self._metrics.in_progress.dec()


def install(app: FastAPI, settings: Settings) -> None:
    """Count the requests of `app`."""
    metrics = app.state.metrics = RequestMetrics(settings)
    app.add_middleware(CountRequests, metrics=metrics)
