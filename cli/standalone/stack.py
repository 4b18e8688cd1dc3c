"""The local stack: everything Turnline needs on one machine, started and kept running by `turnline up`."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cli.errors import SetupError
from cli.standalone import commands
from cli.standalone.data_dir import FLOWER_USER, DataDir
from cli.standalone.process import Command, ManagedProcess, StopSteps, http_ok, log_contains
from cli.standalone.process_utils import LOOPBACK, listener, port_is_free
from cli.standalone.servers import EmbeddedPostgres, EmbeddedValkey
from cli.standalone.supervisor import Supervisor
from settings import Settings

_PORT_TIMEOUT_S = 5.0  # processes of an `up` that was killed may still be shutting down
_WORKER_STOP: StopSteps = ((signal.SIGTERM, 30.0), (signal.SIGQUIT, 5.0))  # warm, then cold: unfinished turns resume at the next start

EnsureApiKey = Callable[[Settings, DataDir], tuple[str, bool]]
"""Returns an API key of the workspace "default", and True if it was created just now."""


@dataclass(frozen=True)
class Ports:
    """The port of each process. 0 means a free port for Postgres and Valkey, and no process for the sandbox."""

    api: int
    flower: int
    postgres: int
    valkey: int
    sandbox: int = 0


class LocalStack:
    """All processes of one data directory, and the environment they share. Values in `environ` win over generated ones."""

    def __init__(
        self,
        data_dir: DataDir,
        settings: Settings,
        ports: Ports,
        supervisor: Supervisor,
        *,
        environ: Mapping[str, str],
        fast: bool = False,
    ) -> None:
        self.data_dir = data_dir
        self.settings = settings
        self.ports = ports
        self.supervisor = supervisor
        self.fast = fast
        self.env = commands.child_env(environ)
        self.flower_auth = ""
        self.postgres: EmbeddedPostgres | None = None

    @property
    def api_url(self) -> str:
        """The URL of the API."""
        return f"http://{_url_host(self.settings.api_host)}:{self.ports.api}"

    @property
    def flower_url(self) -> str:
        """The URL of Flower."""
        return f"http://{_url_host(self.settings.flower_host)}:{self.ports.flower}{commands.flower_prefix(self.settings)}"

    def start(self) -> None:
        """Start everything and return when every process is ready.

        Raises:
            SetupError: a process did not start; those started before it keep running.
            StopRequested: a stop was requested meanwhile.
        """
        self.data_dir.create()
        self._prepare_env()
        self._check_ports()
        self._start_servers()
        self.supervisor.run_once(self._command("migrate", commands.migrate(), lambda _: False))
        if self.postgres is not None:
            self.postgres.make_login()  # from here on, processes log in with only the application's roles
            self.env["DATABASE_URL"] = self.postgres.login_url
        # The second group stops first: no new work is accepted while the workers finish theirs.
        self.supervisor.start_groups(self._workers(), self._api_beat_flower())

    def _prepare_env(self) -> None:
        generated = self.data_dir.secrets()
        self.flower_auth = self.settings.flower_basic_auth.get_secret_value() or f"{FLOWER_USER}:{generated.flower_password}"
        self.env.setdefault("TURNLINE_SECRET_KEYS", generated.secret_keys)
        self.env |= {"TURNLINE_API_PORT": str(self.ports.api), "TURNLINE_FLOWER_PORT": str(self.ports.flower)}
        self.env |= {"TURNLINE_FLOWER_BASIC_AUTH": self.flower_auth}

    def _start_servers(self) -> None:
        servers: list[ManagedProcess] = []
        valkey = None
        if not self.settings.database_url:
            self.postgres = EmbeddedPostgres(
                self.data_dir.path / "postgres", self.ports.postgres, fast=self.fast, log=self._log("postgres")
            )
            servers.append(self.postgres)
        if not self.settings.broker_url:
            valkey = EmbeddedValkey(self.data_dir.path / "valkey", self.ports.valkey, log=self._log("valkey"))
            servers.append(valkey)
        if self.ports.sandbox:
            sandbox = commands.sandbox(self.ports.sandbox, latency_ms=150, token_ms=25)
            servers.append(self._command("sandbox", sandbox, log_contains("listening")))
        self.supervisor.start(*servers)
        if self.postgres is not None:
            self.env["DATABASE_URL"] = self.postgres.url
            cluster = self.postgres.cluster
            if not cluster.is_relative_to(self.data_dir.path.resolve()):
                self.supervisor.report(
                    f"Postgres does not run as root, and its user cannot reach {self.data_dir.path}: its data is in {cluster}."
                )
        if valkey is not None:
            self.env["CELERY_BROKER_URL"] = valkey.url

    def _workers(self) -> list[ManagedProcess]:
        is_ready = self._celery_logs("ready.")
        return [
            self._command("worker", commands.worker(self.settings.worker_concurrency), is_ready, stop_steps=_WORKER_STOP),
            self._command("maintenance", commands.maintenance(), is_ready, stop_steps=_WORKER_STOP),
        ]

    def _api_beat_flower(self) -> list[ManagedProcess]:
        api = commands.api(self.settings.api_host, self.ports.api)
        beat = commands.beat(self.data_dir.path / "beat" / "schedule")
        flower = commands.flower(self.settings, self.ports.flower)
        healthcheck = f"{commands.flower_prefix(self.settings)}/healthcheck"
        return [
            self._command("api", api, http_ok(self.ports.api, "/readyz", self.settings.api_host)),
            self._command("beat", beat, self._celery_logs("beat: Starting")),
            self._command(
                "flower",
                flower,
                http_ok(self.ports.flower, healthcheck, self.settings.flower_host, commands.basic_auth_header(self.flower_auth)),
                env=commands.flower_env(self.flower_auth),
            ),
        ]

    def _command(
        self,
        name: str,
        command: list[str],
        ready: Callable[[Command], bool],
        *,
        env: Mapping[str, str] | None = None,
        stop_steps: StopSteps = ((signal.SIGTERM, 10.0),),
    ) -> Command:
        return Command(
            name, command, env={**self.env, **(env or {})}, cwd=commands.ROOT, log=self._log(name), ready=ready, stop_steps=stop_steps
        )

    def _celery_logs(self, text: str) -> Callable[[Command], bool]:
        """Return a readiness check: Celery has logged `text`. If the log level hides INFO lines, a running process counts as ready."""
        level = logging.getLevelNamesMapping().get(self.settings.log_level.upper(), logging.INFO)
        return log_contains(text) if level <= logging.INFO else (lambda process: process.alive)

    def _log(self, name: str) -> Path:
        return self.data_dir.logs / f"{name}.log"

    def _check_ports(self) -> None:
        needed = [("the API", self.settings.api_host, self.ports.api, "TURNLINE_API_PORT")]
        needed += [("Flower", self.settings.flower_host, self.ports.flower, "TURNLINE_FLOWER_PORT")]
        if not self.settings.database_url:
            needed += [("Postgres", LOOPBACK, self.ports.postgres, "TURNLINE_POSTGRES_PORT")]
        if not self.settings.broker_url:
            needed += [("Valkey", LOOPBACK, self.ports.valkey, "TURNLINE_VALKEY_PORT")]
        if self.ports.sandbox:
            needed += [("the sandbox", LOOPBACK, self.ports.sandbox, "TURNLINE_SANDBOX_PORT")]
        deadline = time.monotonic() + _PORT_TIMEOUT_S
        for name, host, port, setting in needed:
            while port and not port_is_free(port, host):
                self.supervisor.raise_if_stop_requested()
                if time.monotonic() > deadline:
                    raise SetupError(
                        f"Port {port} is in use by {listener(port)}, and {name} needs it. "
                        f"Stop that program, or set {setting} to a free port."
                    )
                time.sleep(0.1)


def up(settings: Settings, report: Callable[[str], None], ensure_api_key: EnsureApiKey) -> None:
    """Start everything with data in `settings.home`, print the addresses, keep it running until a stop is requested, and stop it.

    Raises:
        SetupError: a process did not start. Nothing is left running.
        StopRequested: a stop was requested during the start. Nothing is left running.
    """
    data_dir = DataDir(settings.home)
    data_dir.create()
    supervisor = Supervisor(report)
    ports = Ports(settings.api_port, settings.flower_port, settings.postgres_port, settings.valkey_port)
    environ = dict(os.environ)
    if not settings.openai_api_key.get_secret_value() and "openai_base_url" not in settings.model_fields_set:
        ports = replace(ports, sandbox=settings.sandbox_port)
        environ |= {"OPENAI_API_KEY": "sk-sandbox", "OPENAI_BASE_URL": f"http://{LOOPBACK}:{ports.sandbox}/v1"}
    stack = LocalStack(data_dir, settings, ports, supervisor, environ=environ)
    with data_dir.locked(), supervisor.signals():
        try:
            report(f"Starting. Data and logs: {data_dir.path}")
            stack.start()
            database = settings.model_copy(update={"database_url": stack.env["DATABASE_URL"]})
            _report_addresses(stack, report, *ensure_api_key(database, data_dir))
            supervisor.keep_running()
        finally:
            supervisor.stop()
            report("Everything has stopped.")


def _report_addresses(stack: LocalStack, report: Callable[[str], None], api_key: str, is_new: bool) -> None:
    user, _, password = stack.flower_auth.partition(":")
    report(f"API      {stack.api_url}   (documentation: {stack.api_url}/docs)")
    report(f"Flower   {stack.flower_url}   (user {user}, password {password})")
    if stack.ports.sandbox:
        report(f"Model    the sandbox on port {stack.ports.sandbox}; set OPENAI_API_KEY (and OPENAI_BASE_URL) to use a real model")
    report(f"API key  {api_key}   (of the {'new ' if is_new else ''}workspace default)")


def _url_host(host: str) -> str:
    host = {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}.get(host, host)  # noqa: S104 - read, not bound
    return f"[{host}]" if ":" in host else host
