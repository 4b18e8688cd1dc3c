"""Everything on one machine: embedded servers where none are given, and every part of ours, kept running."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cli import workspaces
from cli.errors import SetupError
from cli.standalone import commands
from cli.standalone.data_dir import FLOWER_USER, DataDir
from cli.standalone.process import Command, ManagedProcess, Steps, http_ok, log_says
from cli.standalone.process_utils import LOOPBACK, listener, port_is_free
from cli.standalone.servers import EmbeddedPostgres, EmbeddedValkey
from cli.standalone.supervisor import Supervisor
from settings import Settings

_PORT_PATIENCE_S = 5.0  # parts of an `up` that was killed may still be going down
_WORKER_STOPS: Steps = ((signal.SIGTERM, 30.0), (signal.SIGQUIT, 5.0))  # warm, then cold: what is left runs again at the next start


@dataclass(frozen=True)
class Ports:
    """Where each part listens, on loopback. 0 for Postgres and Valkey means a free one."""

    api: int
    flower: int
    postgres: int
    valkey: int
    sandbox: int = 0


class Machine:
    """All parts of one `home`, and the environment they share. `environ` is what the user gave; it wins over what is generated."""

    def __init__(
        self,
        home: DataDir,
        settings: Settings,
        ports: Ports,
        supervisor: Supervisor,
        *,
        environ: Mapping[str, str],
        fast: bool = False,
    ) -> None:
        self.home = home
        self.settings = settings
        self.ports = ports
        self.supervisor = supervisor
        self.fast = fast
        self.env = commands.child_env(environ)
        self.flower_auth = ""
        self.postgres: EmbeddedPostgres | None = None

    @property
    def api_url(self) -> str:
        """Where the API answers."""
        return f"http://{_for_url(self.settings.api_host)}:{self.ports.api}"

    @property
    def flower_url(self) -> str:
        """Where Flower answers."""
        return f"http://{_for_url(self.settings.flower_host)}:{self.ports.flower}{commands.flower_prefix(self.settings)}"

    def start(self) -> None:
        """Start everything and return when all of it answers.

        Raises:
            SetupError: something does not start; what had been started still runs.
            Stopped: a stop was asked for meanwhile.
        """
        self.home.make()
        self._prepare_env()
        self._check_ports()
        self._start_servers()
        self.supervisor.run_once(self._command("migrate", commands.migrate(), lambda _: False))
        if self.postgres is not None:
            self.postgres.make_login()  # the parts log in as one who may do no more than their roles
            self.env["DATABASE_URL"] = self.postgres.login_url
        # Two stages, so that nothing is accepted any more when the workers are told to finish.
        self.supervisor.start_stages(self._workers(), self._front())

    def _prepare_env(self) -> None:
        generated = self.home.secrets()
        self.flower_auth = self.settings.flower_basic_auth.get_secret_value() or f"{FLOWER_USER}:{generated.flower_password}"
        self.env.setdefault("TURNLINE_SECRET_KEYS", generated.secret_keys)
        self.env |= {"TURNLINE_API_PORT": str(self.ports.api), "TURNLINE_FLOWER_PORT": str(self.ports.flower)}
        self.env |= {"TURNLINE_FLOWER_BASIC_AUTH": self.flower_auth}

    def _start_servers(self) -> None:
        servers: list[ManagedProcess] = []
        valkey = None
        if not self.settings.database_url:
            self.postgres = EmbeddedPostgres(self.home.path / "postgres", self.ports.postgres, fast=self.fast, log=self._log("postgres"))
            servers.append(self.postgres)
        if not self.settings.broker_url:
            valkey = EmbeddedValkey(self.home.path / "valkey", self.ports.valkey, log=self._log("valkey"))
            servers.append(valkey)
        if self.ports.sandbox:
            sandbox = commands.sandbox(self.ports.sandbox, latency_ms=150, token_ms=25)
            servers.append(self._command("sandbox", sandbox, log_says("listening")))
        self.supervisor.start(*servers)
        if self.postgres is not None:
            self.env["DATABASE_URL"] = self.postgres.url
            cluster = self.postgres.cluster
            if not cluster.is_relative_to(self.home.path.resolve()):
                self.supervisor.say(f"Postgres does not run as root and cannot reach {self.home.path}: its data is in {cluster}.")
        if valkey is not None:
            self.env["CELERY_BROKER_URL"] = valkey.url

    def _workers(self) -> list[ManagedProcess]:
        celery_is_ready = self._logged("ready.")
        return [
            self._command("worker", commands.worker(self.settings.worker_concurrency), celery_is_ready, stop_steps=_WORKER_STOPS),
            self._command("maintenance", commands.maintenance(), celery_is_ready, stop_steps=_WORKER_STOPS),
        ]

    def _front(self) -> list[ManagedProcess]:
        api = commands.api(self.settings.api_host, self.ports.api)
        beat = commands.beat(self.home.path / "beat" / "schedule")
        flower = commands.flower(self.settings, self.ports.flower)
        healthcheck = f"{commands.flower_prefix(self.settings)}/healthcheck"
        return [
            self._command("api", api, http_ok(self.ports.api, "/readyz", self.settings.api_host)),
            self._command("beat", beat, self._logged("beat: Starting")),
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
        stop_steps: Steps = ((signal.SIGTERM, 10.0),),
    ) -> Command:
        return Command(
            name, command, env={**self.env, **(env or {})}, cwd=commands.ROOT, log=self._log(name), ready=ready, stop_steps=stop_steps
        )

    def _logged(self, words: str) -> Callable[[Command], bool]:
        """Ready once Celery has logged `words`; where the log level hides them, as soon as it runs."""
        level = logging.getLevelNamesMapping().get(self.settings.log_level.upper(), logging.INFO)
        return log_says(words) if level <= logging.INFO else (lambda part: part.alive)

    def _log(self, name: str) -> Path:
        return self.home.logs / f"{name}.log"

    def _check_ports(self) -> None:
        wanted = [("the API", self.settings.api_host, self.ports.api, "TURNLINE_API_PORT")]
        wanted += [("Flower", self.settings.flower_host, self.ports.flower, "TURNLINE_FLOWER_PORT")]
        if not self.settings.database_url:
            wanted += [("Postgres", LOOPBACK, self.ports.postgres, "TURNLINE_POSTGRES_PORT")]
        if not self.settings.broker_url:
            wanted += [("Valkey", LOOPBACK, self.ports.valkey, "TURNLINE_VALKEY_PORT")]
        if self.ports.sandbox:
            wanted += [("the stand-in model", LOOPBACK, self.ports.sandbox, "TURNLINE_SANDBOX_PORT")]
        deadline = time.monotonic() + _PORT_PATIENCE_S
        for what, host, port, setting in wanted:
            while port and not port_is_free(port, host):
                self.supervisor.check()
                if time.monotonic() > deadline:
                    raise SetupError(
                        f"Port {port} is in use by {listener(port)}, and {what} wants it. "
                        f"Stop that program, or set {setting} to a free port."
                    )
                time.sleep(0.1)


def _for_url(host: str) -> str:
    host = {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}.get(host, host)  # noqa: S104 - read, not bound
    return f"[{host}]" if ":" in host else host


def up(settings: Settings, say: Callable[[str], None]) -> None:
    """Start everything under `settings.home`, say where it is, keep it running until a stop is asked for, and stop it.

    Raises:
        SetupError: it does not start here. Nothing is left running.
    """
    home = DataDir(settings.home)
    home.make()
    supervisor = Supervisor(say)
    ports = Ports(settings.api_port, settings.flower_port, settings.postgres_port, settings.valkey_port)
    environ = dict(os.environ)
    if not settings.openai_api_key.get_secret_value() and "openai_base_url" not in settings.model_fields_set:
        ports = replace(ports, sandbox=settings.sandbox_port)
        environ |= {"OPENAI_API_KEY": "sk-sandbox", "OPENAI_BASE_URL": f"http://{LOOPBACK}:{ports.sandbox}/v1"}
    machine = Machine(home, settings, ports, supervisor, environ=environ)
    with home.locked(), supervisor.signals():
        try:
            say(f"Starting. Data and logs: {home.path}")
            machine.start()
            _say_where(machine, say)
            supervisor.watch()
        finally:
            supervisor.stop()
            say("Everything has stopped.")


def _say_where(machine: Machine, say: Callable[[str], None]) -> None:
    user, _, password = machine.flower_auth.partition(":")
    say(f"API      {machine.api_url}   (its documentation: {machine.api_url}/docs)")
    say(f"Flower   {machine.flower_url}   (user {user}, password {password})")
    if machine.ports.sandbox:
        say(f"Model    a stand-in on port {machine.ports.sandbox}: set OPENAI_API_KEY (and OPENAI_BASE_URL) for a real one")
    key, is_new = _first_key(machine)
    say(f"API key  {key}" + ("   (of the new workspace default)" if is_new else "   (of the workspace default)"))


def _first_key(machine: Machine) -> tuple[str, bool]:
    """The key of the workspace "default" on this machine, and whether it was made just now."""
    kept = machine.home.secrets().api_key
    settings = machine.settings.model_copy(update={"database_url": machine.env["DATABASE_URL"]})
    if kept and workspaces.key_works(settings, kept):
        return kept, False
    made = workspaces.create(settings, "default")
    machine.home.remember_key(str(made.workspace_id), made.api_key)
    return made.api_key, True
