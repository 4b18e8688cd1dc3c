"""What a worker counts as it works: turns, their stages, model and tool calls, jobs. Told by `worker.metrics_server`.

Everything about a turn is counted after the commit that made it true, so that what was repeated is counted once. Labels are words of ours,
never ids and never a customer's. docs/operations.md says how to read each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from uuid import UUID

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from engine.enums import CancelReason
from engine.turn.commit import CommitResult, Finish, Outcome, Park, SettledCall, TurnCommit
from integrations.providers import known

disable_created_metrics()  # a second series for each, which nobody asks for

REGISTRY = CollectorRegistry()
FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
SLOW_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)

TURNS = Counter("turnline_turns", "Turns that ended, by outcome.", ["outcome"], registry=REGISTRY)
TURN_S = Histogram("turnline_turn_duration_seconds", "From a turn's opening to its end.", registry=REGISTRY, buckets=SLOW_S)
RESTS = Counter("turnline_turn_rests", "Carried turns that were put aside before their end, by reason.", ["reason"], registry=REGISTRY)
CLAIMS = Counter("turnline_turn_claims", "Attempts to take a turn, by outcome.", ["outcome"], registry=REGISTRY)
STAGE_S = Histogram(
    "turnline_turn_stage_seconds", "Time of a turn's stages: wait, claim, commit.", ["stage"], registry=REGISTRY, buckets=(*FAST_S, 60, 300)
)
QUEUE_S = Histogram("turnline_queue_wait_seconds", "From sending a task to its receipt.", ["queue"], registry=REGISTRY, buckets=SLOW_S)
MODEL_CALLS = Counter("turnline_model_calls", "Requests to model providers by outcome.", ["provider", "outcome"], registry=REGISTRY)
MODEL_S = Histogram("turnline_model_call_duration_seconds", "Time of model calls.", ["provider"], registry=REGISTRY, buckets=SLOW_S)
FIRST_S = Histogram("turnline_model_first_token_seconds", "Time to the first token.", ["provider"], registry=REGISTRY, buckets=SLOW_S)
TOKENS = Counter("turnline_model_tokens", "Tokens booked, by kind.", ["provider", "kind"], registry=REGISTRY)
DOLLARS = Counter("turnline_model_cost_dollars", "Cost booked in US dollars, where a price is known.", ["provider"], registry=REGISTRY)
UNPRICED = Counter("turnline_model_unpriced_calls", "Booked calls whose price nobody knows.", ["provider"], registry=REGISTRY)
TOOL_CALLS = Counter("turnline_tool_calls", "Tool calls by outcome.", ["outcome"], registry=REGISTRY)
TOOL_S = Histogram("turnline_tool_call_duration_seconds", "Time of tool calls, their tries and waits.", registry=REGISTRY, buckets=SLOW_S)
JOB_RUNS = Counter("turnline_job_runs", "Runs of scheduled jobs in this process.", ["job", "outcome"], registry=REGISTRY)
JOB_ITEMS = Counter("turnline_job_items", "What those runs did, by their own counts.", ["job", "item"], registry=REGISTRY)

_WAIT, _CLAIM, _COMMIT = (STAGE_S.labels(stage) for stage in ("wait", "claim", "commit"))


@contextmanager
def claiming() -> Iterator[None]:
    """Time a claim."""
    began = time.perf_counter()
    yield
    _CLAIM.observe(time.perf_counter() - began)


def claimed(turn_id: UUID, attempts: int) -> None:
    """Count a turn that was claimed; at its first attempt, also how long it had waited since it was opened."""
    CLAIMS.labels("claimed").inc()
    if attempts == 1:
        _WAIT.observe(_age_s(turn_id))


def not_claimed(why: str) -> None:
    """Count a turn that was not. One that its attempts had used up was ended by trying."""
    CLAIMS.labels(why).inc()
    if why == "dead":
        TURNS.labels("dead").inc()


def committed(turn_id: UUID, provider: str, commit: TurnCommit, result: CommitResult, seconds: float) -> None:
    """Count what a commit made true; it took `seconds`."""
    _COMMIT.observe(seconds)
    if commit.model_call is not None:
        _model_call(provider if known(provider) else "other", commit.model_call)
    for settled in commit.tool_results:
        TOOL_CALLS.labels(settled.outcome.status.value).inc()
        TOOL_S.observe(settled.outcome.latency_ms / 1000)
    if result.outcome is not None:
        _outcome(turn_id, result.outcome, paused=result.cancel_reason == CancelReason.PAUSED)


def _outcome(turn_id: UUID, outcome: Outcome, *, paused: bool) -> None:
    match outcome:
        case Finish(status=status):
            _ended(turn_id, status)
        case Park() if paused:
            RESTS.labels("paused").inc()
        case Park(for_approval=True):
            RESTS.labels("approval").inc()
        case Park(error_class=None):
            RESTS.labels("slice").inc()
        case Park():
            RESTS.labels("failure").inc()


def _ended(turn_id: UUID, outcome: str) -> None:
    TURNS.labels(outcome).inc()
    TURN_S.observe(_age_s(turn_id))


def lost() -> None:
    """Count a turn whose lease was lost while it was carried."""
    RESTS.labels("lease_lost").inc()


def received(queue: str, sent_at: object) -> None:
    """Count a task that was received; `sent_at` (seconds of the epoch) is as its message says, if it does."""
    if isinstance(sent_at, (int, float)):
        QUEUE_S.labels(queue).observe(max(0.0, time.time() - sent_at))


def job_ran(job: str, outcome: str, counts: Mapping[str, int]) -> None:
    """Count a run of a job, and what it did."""
    JOB_RUNS.labels(job, outcome).inc()
    for item, amount in counts.items():
        JOB_ITEMS.labels(job, item).inc(max(0, amount))


def _model_call(provider: str, call: SettledCall) -> None:
    MODEL_CALLS.labels(provider, call.error_class or call.state.value).inc()
    reply = call.reply
    latency_ms = reply.latency_ms if reply is not None and not call.estimated else call.latency_ms
    if latency_ms is not None:
        MODEL_S.labels(provider).observe(latency_ms / 1000)
    if reply is None:
        return
    if reply.ttft_ms is not None:
        FIRST_S.labels(provider).observe(reply.ttft_ms / 1000)
    if reply.usage is not None:
        usage = reply.usage
        for kind, amount in (
            ("input", usage.input_tokens),
            ("cached_input", usage.cached_input_tokens),
            ("cache_write", usage.cache_write_tokens),
            ("output", usage.output_tokens),
            ("reasoning", usage.reasoning_tokens),
        ):
            if amount:
                TOKENS.labels(provider, kind).inc(amount)
    if call.cost.cost_usd is not None:
        DOLLARS.labels(provider).inc(float(call.cost.cost_usd))
    else:
        UNPRICED.labels(provider).inc()


def _age_s(turn_id: UUID) -> float:
    """How long ago the turn was opened: its id (UUIDv7) begins with the database's milliseconds of then."""
    return max(0.0, time.time() - (turn_id.int >> 80) / 1000)
