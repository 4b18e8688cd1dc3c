"""Metrics for Prometheus: this process's requests, and the state of all workspaces' work."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder

from api.errors import Problem, respond
from api.openapi import problem
from api.request_metrics import RequestMetrics
from observability.metrics_access import refusal

routes = APIRouter(tags=["health"])


@routes.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"description": "The metrics, in Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        401: problem("`TURNLINE_METRICS_TOKEN` is set, and the request does not carry it."),
        403: problem("`TURNLINE_METRICS_TOKEN` is not set, and the request does not come from this machine."),
    },
)
async def metrics(request: Request) -> Response:
    """Return the metrics: requests, open turns, leases, integrations by health, jobs. For operators; nothing is labelled by workspace."""
    metrics: RequestMetrics = request.app.state.metrics
    peer = request.client.host if request.client else ""
    refused = refusal(peer, request.headers, metrics.token)
    if refused is not None:
        status, sentence = refused
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        return respond(request.scope, Problem(status, sentence, headers=headers))
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    body = await asyncio.to_thread(encode, metrics.registry)
    return Response(body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})
