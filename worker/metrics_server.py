"""A worker's metrics for Prometheus, over HTTP: its counters, its pool and, on a maintenance worker, the queues and the database."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from threading import Thread
from typing import Any

from celery import signals
from celery.worker import state
from kombu.exceptions import OperationalError
from prometheus_client import GC_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from observability import metrics
from observability.database_metrics import Gauges
from observability.metrics_access import refusal
from observability.queue_depth import SENT_AT, depths
from settings import Settings, get_settings
from store.database import MAINTENANCE_ROLE
from store.operations import system_stats
from worker import resources

log = logging.getLogger(__name__)

PORTS_TRIED = 100


class PoolCollector(Collector):
    """The pool of the worker that `consumer` (Celery's) belongs to, and the worker's leases."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    def collect(self) -> Iterator[Metric]:
        """Return the current values."""
        pool = self._consumer.pool
        info = pool.info if hasattr(pool, "loop_lag_s") else {}
        running = info.get("running", len(state.active_requests))
        yield InfoMetricFamily("turnline_worker", "This worker.", {"name": self._consumer.hostname, "pid": str(os.getpid())})
        yield GaugeMetricFamily("turnline_pool_limit", "How many tasks may run at a time.", value=pool.num_processes)
        yield GaugeMetricFamily("turnline_pool_running", "Running tasks.", value=running)
        reserved = max(0, len(state.reserved_requests) - running)
        yield GaugeMetricFamily("turnline_pool_queued", "Received tasks that do not run yet.", value=info.get("queued", reserved))
        if info:
            lag_s, worst_s = info["loop-lag-ms"] / 1000, info["loop-lag-ms-worst-30s"] / 1000
            yield GaugeMetricFamily("turnline_pool_loop_lag_seconds", "Lag of the tasks' event loop.", value=lag_s)
            yield GaugeMetricFamily("turnline_pool_loop_lag_worst_seconds", "Longest lag of the last half minute.", value=worst_s)
            yield GaugeMetricFamily("turnline_leases_held", "Leases this process renews.", value=resources.lease_count())


class QueueCollector(Collector):
    """The broker's queues."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def collect(self) -> Iterator[Metric]:
        """Return the current depths."""
        try:
            found = depths(self._app, [queue.name for queue in self._app.conf.task_queues])
        except (OperationalError, OSError) as error:
            log.warning("Queue depths could not be read: %s", type(error).__name__)
            found = {}
        yield GaugeMetricFamily("turnline_broker_up", "Whether the broker answered.", value=bool(found))
        messages = GaugeMetricFamily("turnline_queue_messages", "Messages in a queue of the broker.", labels=["queue"])
        oldest = GaugeMetricFamily("turnline_queue_oldest_age_seconds", "Age of its oldest message (Redis, Valkey).", labels=["queue"])
        for name, depth in found.items():
            messages.add_metric([name], depth.messages)
            if depth.oldest_s is not None or not depth.messages:
                oldest.add_metric([name], depth.oldest_s or 0.0)
        yield messages
        yield oldest


def registry_for(consumer: Any, settings: Settings) -> CollectorRegistry:
    """Return a registry of all metrics of the worker that `consumer` belongs to."""
    registry = CollectorRegistry()
    for collector in (PROCESS_COLLECTOR, GC_COLLECTOR, metrics.REGISTRY, PoolCollector(consumer)):
        registry.register(collector)
    if any(queue.name == "maintenance" for queue in consumer.task_consumer.queues):
        url = settings.maintenance_database_url or settings.database_url
        registry.register(Gauges(lambda: system_stats.read(url, role=MAINTENANCE_ROLE)))
        registry.register(QueueCollector(consumer.app))
    return registry


def serve(registry: CollectorRegistry, host: str, port: int, token: str) -> ThreadingHTTPServer | None:
    """Serve GET /metrics from a thread, on the first free port of a hundred from `port` on. Return None if all are taken."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            refused = refusal(self.client_address[0], headers, token)
            if refused is None and self.path.partition("?")[0] == "/metrics":
                encode, content_type = choose_encoder(headers.get("accept", ""))
                self._answer(200, content_type, encode(registry))
            else:
                status, detail = refused or (404, "Not found. The only path is /metrics.")
                self._answer(status, "text/plain; charset=utf-8", detail.encode() + b"\n")

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            if status == 401:
                self.send_header("WWW-Authenticate", "Bearer")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing: scrapes come every few seconds."""

    class Server(ThreadingHTTPServer):
        address_family = AF_INET6 if ":" in host else AF_INET
        daemon_threads = True

    for candidate in range(port, min(port + PORTS_TRIED, 65536)):
        try:
            server = Server((host, candidate), Handler)
        except OSError:
            continue
        Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        return server
    return None


_server: ThreadingHTTPServer | None = None


@signals.worker_ready.connect
def _start(sender: Any, **_: object) -> None:
    """Start the server once. Celery sends this signal after every reconnect."""
    global _server
    settings = get_settings()
    if _server is not None or not settings.metrics_port:
        return
    host, token = settings.metrics_host, settings.metrics_token.get_secret_value()
    _server = serve(registry_for(sender, settings), host, settings.metrics_port, token)
    if _server is None:
        log.warning("Metrics are not served: no free port", extra={"host": host, "from_port": settings.metrics_port})
    else:
        log.info("Serving metrics", extra={"host": host, "port": _server.server_port})


@signals.task_received.connect
def _received(request: Any = None, **_: object) -> None:
    if request is not None:
        metrics.received(str(request.delivery_info.get("routing_key")), request.request_dict.get(SENT_AT))
