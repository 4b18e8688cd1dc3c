"""docker-compose.yml and the Dockerfile are valid, and each service works with its command, environment and health check.

The tests need no container engine: each container's command runs as a process, and real servers replace those of the file. The logins,
rights and passwords are those of the file.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import yaml

from tests.deploy.compose import FILE, compose
from tests.support.servers import ROOT, SECRET_KEY, EmbeddedPostgres, EmbeddedValkey, free_port, process_env, until
from tests.support.stack import Process

SERVICES = ("api", "worker", "maintenance", "beat", "flower")
VALUES = {
    "POSTGRES_PASSWORD": "pg",
    "TURNLINE_MIGRATE_PASSWORD": "migrate1",
    "TURNLINE_RUNTIME_PASSWORD": "runtime1",
    "VALKEY_PASSWORD": "valkey1",
    "TURNLINE_SECRET_KEYS": SECRET_KEY,
    "TURNLINE_FLOWER_BASIC_AUTH": "ops:flower1",
    "OPENAI_API_KEY": "sk-test",
}


def test_compose_file_is_valid():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("missing", sorted(set(VALUES) - {"OPENAI_API_KEY"}))
def test_compose_file_requires_passwords_and_keys(missing: str):
    with pytest.raises(KeyError, match=missing):
        compose({name: value for name, value in VALUES.items() if name != missing})


def test_every_service_has_a_health_check_and_a_stop_period():
    services = compose(VALUES)["services"]
    assert {"postgres", "valkey", "rabbitmq", "migrate", *SERVICES} == set(services)
    for name, service in services.items():
        assert "healthcheck" in service or name == "migrate"
        assert "latest" not in service["image"] or service["image"].startswith("turnline:")
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "a port is open to other machines"
    assert services["rabbitmq"]["profiles"] == ["rabbitmq"]
    for name in SERVICES:
        assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]
    assert all(services[name]["stop_grace_period"] == "6m" for name in ("worker", "maintenance")), "not longer than the longest task, 330 s"


def test_image_contains_the_wheels_packages_no_secrets_and_runs_without_root():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]}
    assert all((ROOT / one).exists() for one in copied)
    packages = set(re.findall(r'"([\w.]+)"', re.search(r"only-include = (\[.*\])", (ROOT / "pyproject.toml").read_text())[1]))  # type: ignore[index]
    assert packages <= copied, "a package of the wheel is missing in the image"
    included = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert packages <= included
    assert not any(name in one for one in included for name in (".env", ".turnline", ".git", "tests"))
    assert lines.index("USER turnline") > max(n for n, line in enumerate(lines) if line.startswith("RUN"))
    assert "--require-hashes" in (ROOT / "Dockerfile").read_text()


class Containers:
    """Runs the services of the compose file as processes."""

    def __init__(self, directory: Path, postgres: EmbeddedPostgres, valkey_port: int) -> None:
        self.directory = directory
        self.ports = {"8000": free_port(), "5555": free_port()}
        self.replacements = {
            "@postgres:5432/": f"@127.0.0.1:{postgres.port}/",
            "@valkey:6379/": f"@127.0.0.1:{valkey_port}/",
            "https://api.openai.com/v1": "http://127.0.0.1:{sandbox}/v1",
        }
        self.file = compose(VALUES)
        self.services: dict[str, Any] = self.file["services"]

    def env(self, name: str) -> dict[str, str]:
        """Return the environment of a service, with the addresses of this machine."""
        environment = {key: self.localize(str(value)) for key, value in self.services[name]["environment"].items()}
        ports = {"TURNLINE_API_PORT": str(self.ports["8000"]), "TURNLINE_FLOWER_PORT": str(self.ports["5555"])}
        return process_env(**(environment | ports | {"TURNLINE_HOME": str(self.directory)}))

    def localize(self, text: str) -> str:
        for original, replacement in self.replacements.items():
            text = text.replace(original, replacement)
        return text.replace("0.0.0.0", "127.0.0.1")

    def command(self, name: str) -> list[str]:
        """Return the service's command, as the image's entry point runs it."""
        return [sys.executable, "-m", "cli.main", *self.services[name]["command"]]

    def healthy(self, name: str) -> bool:
        kind, *words = self.services[name]["healthcheck"]["test"]
        for original, replacement in self.ports.items():
            words = [word.replace(original, str(replacement)) for word in words]
        command = ["sh", "-c", words[0]] if kind == "CMD-SHELL" else words
        return subprocess.run(command, env=self.env(name), capture_output=True, timeout=40, check=False).returncode == 0


@pytest.fixture(scope="module")
def containers(scratch: Path) -> Iterator[Containers]:
    """Provide a migrated database with the file's logins, a broker with its password, and the sandbox as the model provider."""
    directory = scratch / "compose"
    directory.mkdir(mode=0o711)
    sandbox_port = free_port()
    with EmbeddedPostgres(directory / "postgres", fast=True) as postgres, EmbeddedValkey(None) as valkey:
        made = Containers(directory, postgres, valkey.port)
        made.replacements["https://api.openai.com/v1"] = f"http://127.0.0.1:{sandbox_port}/v1"
        made.replacements[f":{VALUES['VALKEY_PASSWORD']}@"] = f":{urlsplit(valkey.url).password}@"
        with psycopg.connect(postgres.url, autocommit=True) as db:
            for statement in made.file["configs"]["logins"]["content"].split(";\n"):
                if statement.strip():
                    db.execute(statement)
        sandbox = Process(directory / "sandbox.log", process_env(), "-m", "sandbox", "--port", str(sandbox_port))
        until(lambda: sandbox.logged("listening"), 20)
        done = subprocess.run(made.command("migrate"), env=made.env("migrate"), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        yield made
        sandbox.stop()


def test_services_run_a_turn_are_healthy_and_stop(containers: Containers):
    running = {}
    try:
        for name in SERVICES:
            running[name] = Process(containers.directory / f"{name}.log", containers.env(name), *containers.command(name))
        until(lambda: running["worker"].logged("ready.") and running["maintenance"].logged("ready."), 40)
        until(lambda: containers.healthy("api"), 40)
        created = subprocess.run(
            [sys.executable, "-m", "cli.main", "workspace", "create", "Acme", "--json"],
            env=containers.env("api"),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        call = Caller(f"http://127.0.0.1:{containers.ports['8000']}/v1", json.loads(created.stdout)["api_key"])
        agent = call("agents", {"name": "Ada", "model_name": "gpt-4o"})
        session = call("sessions", {"agent_id": agent["id"]})
        call(f"sessions/{session['id']}/messages", {"text": "Hello"})
        until(lambda: any(event["kind"] == "agent_message" for event in call(f"sessions/{session['id']}/events")["events"]), 30)
        for name in SERVICES:
            until(partial(containers.healthy, name), 60)
    finally:
        codes = {name: process.stop() for name, process in running.items()}
    assert set(codes.values()) <= {0, -15}, codes
    assert (codes["worker"], codes["maintenance"]) == (0, 0)


def test_health_check_fails_for_a_process_that_ended(containers: Containers):
    assert not containers.healthy("api")
    assert not containers.healthy("flower")
    assert not containers.healthy("worker")


def test_logins_have_only_the_rights_they_need(containers: Containers):
    runtime, migrate = (containers.env(name) for name in ("api", "migrate"))
    with psycopg.connect(runtime["DATABASE_URL"], autocommit=True) as db:
        assert db.execute("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user").fetchone() == (False,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute("SELECT 1 FROM events")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute("SET ROLE turnline_owner")
    with psycopg.connect(migrate["TURNLINE_OWNER_DATABASE_URL"]) as db:
        assert db.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone() == (False,)


class Caller:
    """Calls the API, with POST if there is a body."""

    def __init__(self, url: str, api_key: str) -> None:
        self.url, self.api_key = url, api_key

    def __call__(self, path: str, body: object = None) -> Any:
        headers = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/{path}", data, headers), timeout=20) as reply:
            return json.load(reply)


def test_interpolation_follows_the_rules_of_compose():
    assert yaml.safe_load(FILE.read_text())["services"]["worker"]["healthcheck"]["test"][1].count("$$") == 1
    assert compose(VALUES)["services"]["worker"]["environment"]["CELERY_BROKER_URL"] == "redis://:valkey1@valkey:6379/0"
    other = compose(VALUES | {"CELERY_BROKER_URL": "amqp://turnline:x@rabbitmq:5672//"})
    assert other["services"]["worker"]["environment"]["CELERY_BROKER_URL"] == "amqp://turnline:x@rabbitmq:5672//"
