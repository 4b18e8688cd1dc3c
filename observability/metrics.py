"""A worker's counters and histograms: turns, their stages, model and tool calls, jobs. `worker.metrics_server` exports them.

Everything about a turn is counted after the commit that made it true, so work that was repeated is counted once. Label values come from
our code: never ids, and never a customer's text. docs/operations.md explains each metric.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from uuid import UUID

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from engine.enums import CancelReason
from engine.turn.commit import CommitResult, Finish, Outcome, Park, SettledCall, TurnCommit
from integrations.providers.registry import is_known

disable_created_metrics()  # they would double the number of series

REGISTRY = CollectorRegistry()
FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
SLOW_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)

TURNS = Counter("turnline_turns", "Turns that ended, by outcome.", ["outcome"], registry=REGISTRY)
TURN_DURATION_S = Histogram("turnline_turn_duration_seconds", "From opening a turn to its end.", registry=REGISTRY, buckets=SLOW_S)
TURNS_PARKED = Counter("turnline_turn_rests", "Runs of turns that ended before the turn did, by reason.", ["reason"], registry=REGISTRY)
CLAIMS = Counter("turnline_turn_claims", "Attempts to claim a turn, by outcome.", ["outcome"], registry=REGISTRY)
STAGE_S = Histogram(
    "turnline_turn_stage_seconds", "Time of a turn's stages: wait, claim, commit.", ["stage"], registry=REGISTRY, buckets=(*FAST_S, 60, 300)
)
QUEUE_WAIT_S = Histogram(
    "turnline_queue_wait_seconds", "From sending a task to receiving it.", ["queue"], registry=REGISTRY, buckets=SLOW_S
)
MODEL_CALLS = Counter("turnline_model_calls", "Requests to model providers, by outcome.", ["provider", "outcome"], registry=REGISTRY)
MODEL_CALL_S = Histogram("turnline_model_call_duration_seconds", "Time of model calls.", ["provider"], registry=REGISTRY, buckets=SLOW_S)
FIRST_TOKEN_S = Histogram("turnline_model_first_token_seconds", "Time to the first token.", ["provider"], registry=REGISTRY, buckets=SLOW_S)
TOKENS = Counter("turnline_model_tokens", "Tokens in the ledger, by kind.", ["provider", "kind"], registry=REGISTRY)
COST_USD = Counter("turnline_model_cost_dollars", "Cost in US dollars, of calls with a known price.", ["provider"], registry=REGISTRY)
UNPRICED_CALLS = Counter("turnline_model_unpriced_calls", "Calls in the ledger without a known price.", ["provider"], registry=REGISTRY)
TOOL_CALLS = Counter("turnline_tool_calls", "Tool calls, by outcome.", ["outcome"], registry=REGISTRY)
TOOL_CALL_S = Histogram("turnline_tool_call_duration_seconds", "Time of tool calls with their retries.", registry=REGISTRY, buckets=SLOW_S)
JOB_RUNS = Counter("turnline_job_runs", "Runs of scheduled jobs in this process.", ["job", "outcome"], registry=REGISTRY)
JOB_ITEMS = Counter("turnline_job_items", "The counts of those runs.", ["job", "item"], registry=REGISTRY)

_WAIT, _CLAIM, _COMMIT = (STAGE_S.labels(stage) for stage in ("wait", "claim", "commit"))


@contextmanager
def claiming() -> Iterator[None]:
    """Measure the time of a claim."""
    began = time.perf_counter()
    yield
    _CLAIM.observe(time.perf_counter() - began)


def claimed(turn_id: UUID, attempts: int) -> None:
    """Count a claimed turn; at its first attempt, also measure how long it had waited since it was opened."""
    CLAIMS.labels("claimed").inc()
    if attempts == 1:
        _WAIT.observe(_age_s(turn_id))


def not_claimed(why: str) -> None:
    """Count a claim that failed. `dead`: the turn had no attempts left, so the claim ended it."""
    CLAIMS.labels(why).inc()
    if why == "dead":
        TURNS.labels("dead").inc()


def committed(turn_id: UUID, provider: str, commit: TurnCommit, result: CommitResult, seconds: float) -> None:
    """Count the results of a commit, which took `seconds`."""
    _COMMIT.observe(seconds)
    if commit.model_call is not None:
        _model_call(provider if is_known(provider) else "other", commit.model_call)
    for settled in commit.tool_results:
        TOOL_CALLS.labels(settled.outcome.status.value).inc()
        TOOL_CALL_S.observe(settled.outcome.latency_ms / 1000)
    if result.outcome is not None:
        _outcome(turn_id, result.outcome, paused=result.cancel_reason == CancelReason.PAUSED)


def _outcome(turn_id: UUID, outcome: Outcome, *, paused: bool) -> None:
    match outcome:
        case Finish(status=status):
            _ended(turn_id, status)
        case Park() if paused:
            TURNS_PARKED.labels("paused").inc()
        case Park(for_approval=True):
            TURNS_PARKED.labels("approval").inc()
        case Park(error_class=None):
            TURNS_PARKED.labels("slice").inc()
        case Park():
            TURNS_PARKED.labels("failure").inc()


def _ended(turn_id: UUID, outcome: str) -> None:
    TURNS.labels(outcome).inc()
    TURN_DURATION_S.observe(_age_s(turn_id))


def lost() -> None:
    """Count a turn whose lease was lost while it ran."""
    TURNS_PARKED.labels("lease_lost").inc()


def received(queue: str, sent_at: object) -> None:
    """Count a received task. `sent_at` is from the message's headers, in seconds since the epoch; ignored if it is not a number."""
    if isinstance(sent_at, (int, float)):
        QUEUE_WAIT_S.labels(queue).observe(max(0.0, time.time() - sent_at))


def job_ran(job: str, outcome: str, counts: Mapping[str, int]) -> None:
    """Count a run of a job, and add its counts."""
    JOB_RUNS.labels(job, outcome).inc()
    for item, amount in counts.items():
        JOB_ITEMS.labels(job, item).inc(max(0, amount))


def _model_call(provider: str, call: SettledCall) -> None:
    MODEL_CALLS.labels(provider, call.error_class or call.state.value).inc()
    reply = call.reply
    latency_ms = reply.latency_ms if reply is not None and not call.estimated else call.latency_ms
    if latency_ms is not None:
        MODEL_CALL_S.labels(provider).observe(latency_ms / 1000)
    if reply is None:
        return
    if reply.ttft_ms is not None:
        FIRST_TOKEN_S.labels(provider).observe(reply.ttft_ms / 1000)
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
        COST_USD.labels(provider).inc(float(call.cost.cost_usd))
    else:
        UNPRICED_CALLS.labels(provider).inc()


def _age_s(turn_id: UUID) -> float:
    """Return how long ago the turn was opened: its id is a UUIDv7, which begins with the database's time in milliseconds."""
    return max(0.0, time.time() - (turn_id.int >> 80) / 1000)
