"""The Celery app: broker, queues, routes. docs/operations.md says which failures of this stack the settings guard against."""

from __future__ import annotations

import os
import sys
from typing import Any

# Celery reads this when it first imports its pools, so it has to be set before anything of Celery is imported.
os.environ.setdefault("CELERY_CUSTOM_WORKER_POOL", "worker.pool:TaskPool")

from celery import Celery, signals
from kombu.entity import Exchange, Queue

from beat_schedule import SCHEDULE
from failpoints import refuse_a_normal_start
from observability import logs
from observability.queue_depth import add_sent_at
from settings import Settings, get_settings
from worker import dispatching
from worker.async_task import AsyncTask
from worker.dead_letters import DELIVERY_LIMIT, DeclareDeadLetters, dead_letters_of

QUEUES = ("turns", "messages", "tools", "maintenance")
VISIBILITY_TIMEOUT_S = 900  # longer than any task's time limit plus the drain: a message is never redelivered while its task runs


def queue(name: str, broker_url: str) -> Queue:
    """Return the queue `name`: on RabbitMQ a quorum queue with a delivery limit and a dead-letter exchange, elsewhere a plain one."""
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
    """Return the options of the broker's transport."""
    if broker_url.startswith(("amqp", "pyamqp")):
        # Without confirms, a publish into a dying connection is reported as successful.
        return {"confirm_publish": True, "socket_timeout": 5, "connect_timeout": 3}
    return {
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        "socket_timeout": 5,
        "socket_connect_timeout": 3,
        "socket_keepalive": True,
        "health_check_interval": 25,  # with a smaller value, a stall of the server loses messages
        "retry_on_timeout": False,
    }


def beat_options(settings: Settings) -> dict[str, Any]:
    """Return where beat keeps its state: a file of its own or, shared by several beats, Redis or Valkey (redbeat).

    The beat that has redbeat's lock renews it at least every 5 s, and the others look as often: the next one takes over at most 25 s
    after the last renewal. A beat that has lost the lock, or the server for `retry_period` seconds, exits, and its supervisor starts it
    again.

    Raises:
        ValueError: redbeat is configured without Redis or Valkey.
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
        "redbeat_lock_timeout": 20,  # with redbeat's default, nothing would be scheduled for 25 minutes after a crash
    }


def make_app(settings: Settings) -> Celery:
    """Return a Celery app for `settings`. It connects to nothing until it is used."""
    app = Celery("turnline", task_cls=AsyncTask, set_as_current=True)
    app.conf.update(
        broker_url=settings.broker_url or None,
        # kombu's Redis transport, made to survive a lost connection with unacknowledged messages.
        broker_transport="worker.redis_transport:Transport" if settings.broker_url.startswith("redis") else None,
        broker_transport_options=transport_options(settings.broker_url),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=4,
        broker_channel_error_retry=True,  # otherwise RabbitMQ's consumer timeout ends the whole worker process
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
        task_reject_on_worker_lost=True,  # bounded by turns.attempts, which is counted before any work is done
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
        # With remote control and gossip both off, a worker that is busy while the broker restarts stops consuming for ever.
        worker_enable_remote_control=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_soft_shutdown_timeout=20.0,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        enable_utc=True,
        timezone="UTC",
        beat_schedule={name: {**entry} for name, entry in SCHEDULE.items()},
        beat_max_loop_interval=5,
        **beat_options(settings),
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
    app.conf.beat_schedule["sweep-turns"]["schedule"] = settings.sweep_every_s
    return app


def _create_dispatcher(settings: Settings) -> dispatching.Dispatcher:
    from tasks.dispatcher import Dispatcher  # here, because beat and Flower need no database driver

    return Dispatcher(app, settings.database_url)


@signals.setup_logging.connect
def _setup_logging(loglevel: int | str = "INFO", **_: Any) -> None:
    """Use one log format for worker, beat and Flower. Celery then installs no handlers of its own."""
    logs.setup(get_settings().log_level)


signals.before_task_publish.connect(add_sent_at)
if "flower.urls" in sys.modules:  # this process may become Flower: Celery's command line has loaded it before this module
    from worker.flower import require_login

    require_login()
refuse_a_normal_start()
app = make_app(get_settings())
app.set_default()
dispatching.set_factory(_create_dispatcher)
