"""The Celery app: broker, queues, routes. What breaks in this stack, and why each setting is as it is: docs/operations.md."""

from __future__ import annotations

import os
import sys
from typing import Any

# Celery reads this when it first imports its pools, so it is set before anything of Celery is imported.
os.environ.setdefault("CELERY_CUSTOM_WORKER_POOL", "worker.pool:TaskPool")

from celery import Celery, signals
from kombu.entity import Exchange, Queue

from beat_schedule import SCHEDULE
from failpoints import refuse_a_normal_start
from observability import logs
from observability.queue_depth import say_when
from settings import Settings, get_settings
from worker.async_task import AsyncTask
from worker.dead_letters import DELIVERY_LIMIT, DeclareDeadLetters, dead_letters_of

QUEUES = ("turns", "messages", "tools", "maintenance")
VISIBILITY_TIMEOUT_S = 900  # longer than any task's limit and the drain at shutdown: a message never comes back while it is worked on


def queue(name: str, broker_url: str) -> Queue:
    """The queue `name`: on RabbitMQ a quorum queue with a delivery limit and a dead-letter exchange, elsewhere a plain one."""
    if not broker_url.startswith(("amqp", "pyamqp")):
        return Queue(name, Exchange(name, type="direct"), name)
    arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": dead_letters_of(name),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    return Queue(name, Exchange(name, type="direct"), name, queue_arguments=arguments)


def transport_options(broker_url: str) -> dict[str, Any]:
    """Options of the broker's transport."""
    if broker_url.startswith(("amqp", "pyamqp")):
        # Without confirms a publish into a dying connection is reported as done.
        return {"confirm_publish": True, "socket_timeout": 5, "connect_timeout": 3}
    return {
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        "socket_timeout": 5,
        "socket_connect_timeout": 3,
        "socket_keepalive": True,
        "health_check_interval": 25,  # tuned down, it turns a stall into a loss
        "retry_on_timeout": False,
    }


def scheduling(settings: Settings) -> dict[str, Any]:
    """Where beat keeps what it sent: a file of its own, or, shared by several beats, Redis or Valkey.

    The beat that holds redbeat's lock renews it at least every 5 s, in which another looks as often: the next one takes over 25 s after
    the last sign of life at the latest. A beat that has lost the lock, or the server for `retry_period` seconds, exits, for its supervisor
    to start it again.

    Raises:
        ValueError: redbeat is asked for, and there is neither.
    """
    if settings.scheduler == "file":
        return {}
    if not settings.realtime_url:
        raise ValueError("TURNLINE_SCHEDULER is redbeat, which needs Redis or Valkey: set REDIS_URL.")
    return {
        "beat_scheduler": "redbeat.RedBeatScheduler",
        "redbeat_redis_url": settings.realtime_url,
        "redbeat_redis_options": {"socket_timeout": 5, "socket_connect_timeout": 3, "socket_keepalive": True, "retry_period": 15},
        "redbeat_key_prefix": "turnline:beat:",
        "redbeat_lock_timeout": 20,  # redbeat's own default leaves nobody sending for 25 minutes after a crash
    }


def make_app(settings: Settings) -> Celery:
    """A Celery app for `settings`. Connects to nothing until it is used."""
    app = Celery("turnline", task_cls=AsyncTask, set_as_current=True)
    app.conf.update(
        broker_url=settings.broker_url or None,
        # Redis and Valkey through kombu's transport with one repair: it survives a connection lost with messages unacknowledged.
        broker_transport="worker.redis_transport:Transport" if settings.broker_url.startswith("redis") else None,
        broker_transport_options=transport_options(settings.broker_url),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=4,
        broker_channel_error_retry=True,  # else RabbitMQ's consumer timeout ends the whole worker process
        broker_heartbeat=30,
        broker_pool_limit=10,
        task_publish_retry_policy={"max_retries": 2, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5},
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=True,
        task_reject_on_worker_lost=True,  # bounded by turns.attempts, which counts before any work
        task_acks_on_failure=True,
        task_acks_on_timeout=True,
        task_soft_time_limit=300,
        task_time_limit=330,
        task_queues=[queue(name, settings.broker_url) for name in QUEUES],
        task_default_queue="turns",
        task_create_missing_queues=False,
        task_routes={
            "turns.advance": "turns",
            "messages.*": "messages",
            "tools.check_all_health": "maintenance",
            "tools.*": "tools",
            "turns.sweep": "maintenance",
            "usage.*": "maintenance",
            "analytics.*": "maintenance",
            "retention.*": "maintenance",
            "sessions.*": "maintenance",
            "approvals.*": "maintenance",
        },
        task_send_sent_event=True,
        worker_send_task_events=True,
        worker_prefetch_multiplier=1,
        worker_consumer="worker.consumer:Consumer",
        worker_concurrency=settings.worker_concurrency,
        # With remote control and gossip both off, a worker hit by a broker restart while busy stops consuming for ever.
        worker_enable_remote_control=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_soft_shutdown_timeout=20.0,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        enable_utc=True,
        timezone="UTC",
        beat_schedule={name: {**entry} for name, entry in SCHEDULE.items()},
        beat_max_loop_interval=5,
        **scheduling(settings),
        include=[
            "tasks.analytics",
            "tasks.approvals",
            "tasks.messages",
            "tasks.retention",
            "tasks.secrets",
            "tasks.sessions",
            "tasks.tools",
            "tasks.turns",
            "tasks.usage",
            "worker.metrics_server",
            "worker.watchdog",
        ],
    )
    app.steps["consumer"].add(DeclareDeadLetters)
    sweep = app.conf.beat_schedule["sweep-turns"]
    sweep["schedule"] = settings.sweep_every_s
    return app


@signals.setup_logging.connect
def _setup_logging(loglevel: int | str = "INFO", **_: Any) -> None:
    """One format for worker, beat and Flower; Celery installs no handler of its own."""
    logs.setup(get_settings().log_level)


signals.before_task_publish.connect(say_when)
if "flower.urls" in sys.modules:  # this process may become Flower: Celery's command line has loaded it before us
    from worker.flower import close_doors

    close_doors()
refuse_a_normal_start()
app = make_app(get_settings())
app.set_default()
