"""The data directory of `turnline up`: data, logs, and the secrets generated at its first start."""

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
    """The secrets generated at the first start. `api_key` is "" until a workspace exists."""

    secret_keys: str
    flower_password: str
    workspace_id: str = ""
    api_key: str = ""


class DataDir:
    """The directory. Other users cannot read it; if we run as root, the database's user may pass through it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self._secrets_file = self.path / "secrets.json"

    def create(self) -> None:
        """Create the directory if needed, and set its permissions."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o711 if os.geteuid() == 0 else 0o700)
        self.logs.mkdir(exist_ok=True, mode=0o700)
        (self.path / "beat").mkdir(exist_ok=True, mode=0o700)

    def is_initialized(self) -> bool:
        """Return True if `turnline up` has been started on this directory before."""
        return self._secrets_file.exists()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the directory for this process. The kernel releases the lock when the process ends, however it ends.

        Raises:
            SetupError: another process has locked it.
        """
        with (self.path / "up.lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.seek(0)
                owner = lock.read().strip() or "unknown"
                raise SetupError(f"`turnline up` already runs on {self.path} (process {owner}). Stop it first.") from error
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def secrets(self) -> Secrets:
        """Return the secrets, generating them on first use.

        Raises:
            SetupError: the file with the secrets is damaged.
        """
        with contextlib.suppress(FileNotFoundError):
            try:
                return Secrets(**json.loads(self._secrets_file.read_text()))
            except (ValueError, TypeError) as error:
                raise SetupError(
                    f"{self._secrets_file} is damaged ({error}). Restore it from a backup: stored tool secrets are encrypted with its key."
                ) from error
        return self._write(Secrets(base64.b64encode(secrets.token_bytes(32)).decode(), secrets.token_urlsafe(12)))

    def complete(self, settings: Settings) -> Settings:
        """Return `settings` with unset ones filled in from what `turnline up` created here: its servers' URLs and its secrets."""
        if not self.is_initialized():
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

    def save_api_key(self, workspace_id: str, api_key: str) -> None:
        """Store the first API key, for `turnline chat` and the next start."""
        self._write(replace(self.secrets(), workspace_id=workspace_id, api_key=api_key))

    def _write(self, found: Secrets) -> Secrets:
        fresh = self._secrets_file.with_suffix(".new")
        with open(fresh, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            json.dump(asdict(found), file, indent=1)
        fresh.replace(self._secrets_file)
        return found
