"""`turnline api`, `worker`, `beat`, `flower` and `sandbox`: each replaces this process with the real program."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import NoReturn

import click

from cli.errors import SetupError
from cli.options import require_settings
from cli.standalone import commands
from settings import Settings, get_settings


@click.command()
def api() -> None:
    """Run the API.

    It listens on TURNLINE_API_HOST and TURNLINE_API_PORT. Needs DATABASE_URL and CELERY_BROKER_URL.
    """
    settings = require_settings()
    replace_process(settings, commands.api(settings.api_host, settings.api_port))


@click.command()
@click.option("--concurrency", "-c", type=click.IntRange(1), help="Turns to run at a time. Default: TURNLINE_WORKER_CONCURRENCY, 1000.")
@click.option("--name", "-n", default=None, help="Unique among the workers of this machine. Default: turns-1, or maintenance.")
@click.option("--queues", "-Q", default=commands.TURN_QUEUES, show_default=True, help="Queues to consume.")
@click.option("--maintenance", is_flag=True, help="Run the small worker for scheduled jobs instead.")
def worker(concurrency: int | None, name: str | None, queues: str, maintenance: bool) -> None:
    """Run a worker.

    Start one per core, each with its own --name, and at least one with --maintenance, which runs the scheduled jobs. Needs
    DATABASE_URL and CELERY_BROKER_URL.

    \b
    Example:
      turnline worker --name turns-2
      turnline worker --maintenance
    """
    settings = require_settings()
    if maintenance:
        replace_process(settings, commands.maintenance(name or "maintenance"))
    replace_process(settings, commands.worker(concurrency or settings.worker_concurrency, name or "turns-1", queues))


@click.command()
def beat() -> None:
    """Run the scheduler.

    A second one does no harm. With TURNLINE_SCHEDULER=redbeat only one is active and the others stand by; this needs REDIS_URL.
    """
    settings = require_settings()
    if settings.scheduler == "redbeat" and not settings.realtime_url:
        raise SetupError("TURNLINE_SCHEDULER is redbeat, which needs Redis or Valkey: set REDIS_URL.")
    schedule = settings.home.absolute() / "beat" / "schedule"
    schedule.parent.mkdir(parents=True, exist_ok=True)
    replace_process(settings, commands.beat(schedule))


@click.command()
def flower() -> None:
    """Run Flower, behind a password.

    Needs CELERY_BROKER_URL and TURNLINE_FLOWER_BASIC_AUTH=user:password. Optional: TURNLINE_FLOWER_READ_ONLY,
    TURNLINE_FLOWER_URL_PREFIX and TURNLINE_FLOWER_DB.
    """
    settings = require_settings(database=False)
    auth = settings.flower_basic_auth.get_secret_value() or os.environ.get("FLOWER_BASIC_AUTH", "")
    if not auth and not os.environ.get("FLOWER_AUTH"):
        raise SetupError(
            "Flower can show and stop tasks, so it does not run without a password. Set TURNLINE_FLOWER_BASIC_AUTH=user:password, "
            "or FLOWER_AUTH and FLOWER_AUTH_PROVIDER for OAuth."
        )
    replace_process(settings, commands.flower(settings), commands.flower_env(auth) if auth else {})


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=8089, show_default=True, help="Port on loopback.")
def sandbox(port: int) -> None:
    """Run the sandbox: a stand-in model provider and tool server.

    `python -m sandbox --help` lists the faults it can inject.
    """
    replace_process(get_settings(), commands.sandbox(port))


def replace_process(settings: Settings, command: list[str], env: Mapping[str, str] | None = None) -> NoReturn:
    """Replace this process with `command`, so that signals reach it directly."""
    sys.stdout.flush()
    environment = commands.child_env(os.environ, **commands.settings_env(settings), **(env or {}))
    os.execve(command[0], command, environment)  # noqa: S606 - a list, no shell
