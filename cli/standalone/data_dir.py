"""The directory `turnline up` keeps everything in: data, logs, and the secrets that were generated once."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import SecretStr

from cli.errors import SetupError
from cli.standalone.servers import EmbeddedPostgres, EmbeddedValkey
from settings import Settings

FLOWER_USER = "turnline"


@dataclass(frozen=True)
class Secrets:
    """What was generated at the first start. `api_key` is "" until there is a workspace."""

    secret_keys: str
    flower_password: str
    workspace_id: str = ""
    api_key: str = ""


class DataDir:
    """The directory itself. It is nobody else's to read; as root, the database's user may pass through it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self._secrets_file = self.path / "secrets.json"

    def make(self) -> None:
        """Create it, or put its permissions right."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o711 if os.geteuid() == 0 else 0o700)
        self.logs.mkdir(exist_ok=True, mode=0o700)
        (self.path / "beat").mkdir(exist_ok=True, mode=0o700)

    def exists(self) -> bool:
        """Whether `turnline up` was started on it before."""
        return self._secrets_file.exists()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process; the kernel lets go of it whenever the process ends.

        Raises:
            SetupError: another process holds it.
        """
        with (self.path / "up.lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                raise SetupError(f"`turnline up` already runs on {self.path} (process {holder}). Stop that one first.") from error
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def secrets(self) -> Secrets:
        """The secrets, generated on first use."""
        with contextlib.suppress(FileNotFoundError):
            try:
                return Secrets(**json.loads(self._secrets_file.read_text()))
            except (ValueError, TypeError) as error:
                raise SetupError(f"{self._secrets_file} is damaged ({error}). Restore it: stored secrets need its key.") from error
        return self._write(Secrets(base64.b64encode(secrets.token_bytes(32)).decode(), secrets.token_urlsafe(12)))

    def completed(self, settings: Settings) -> Settings:
        """`settings`, with this machine's own servers and secrets where nothing else is given and `turnline up` has made some."""
        if not self.exists():
            return settings
        found = self.secrets()
        updates: dict[str, object] = {}
        if not settings.secret_keys.get_secret_value():
            updates["secret_keys"] = SecretStr(found.secret_keys)
        if not settings.flower_basic_auth.get_secret_value():
            updates["flower_basic_auth"] = SecretStr(f"{FLOWER_USER}:{found.flower_password}")
        if not settings.database_url and (self.path / "postgres" / "password").exists():
            postgres = EmbeddedPostgres(self.path / "postgres", settings.postgres_port)
            updates |= {"database_url": postgres.login_url, "owner_database_url": settings.owner_database_url or postgres.url}
        if not settings.broker_url and (self.path / "valkey" / "password").exists():
            updates["broker_url"] = EmbeddedValkey(self.path / "valkey", settings.valkey_port).url
        return settings.model_copy(update=updates)

    def remember_key(self, workspace_id: str, api_key: str) -> None:
        """Keep the first API key, so that `turnline chat` finds it."""
        self._write(replace(self.secrets(), workspace_id=workspace_id, api_key=api_key))

    def _write(self, found: Secrets) -> Secrets:
        fresh = self._secrets_file.with_suffix(".new")
        with open(fresh, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            json.dump(asdict(found), file, indent=1)
        fresh.replace(self._secrets_file)
        return found
