"""Authentication by API keys (bearer tokens), and what a key may do."""

from __future__ import annotations

import asyncio
import logging

from cachetools import TTLCache
from starlette.requests import Request

from api.errors import Problem
from store.catalog import workspaces
from store.catalog.workspaces import Caller
from store.database import UNAVAILABLE, Database

log = logging.getLogger(__name__)

CACHE_S = 3.0
CACHE_KEYS = 10_000
_NO_KEY = {"WWW-Authenticate": 'Bearer realm="turnline"'}
_BAD_KEY = {"WWW-Authenticate": 'Bearer realm="turnline", error="invalid_token"'}


class ApiKeys:
    """Looks API keys up in the database and caches them for `CACHE_S`, so a busy key is cheap and a revoked one stops soon."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cached: TTLCache[bytes, Caller] = TTLCache(CACHE_KEYS, CACHE_S)
        self._looking_up: dict[bytes, asyncio.Task[Caller | None]] = {}
        self._recorded: TTLCache[bytes, bool] = TTLCache(CACHE_KEYS, workspaces.TOUCH_EVERY_S)
        self._touching: set[asyncio.Task[None]] = set()

    async def caller(self, key_text: str) -> Caller | None:
        """Return the caller that the key belongs to, or None if it is unknown or revoked."""
        digest = workspaces.digest_of(key_text)
        cached = self._cached.get(digest)
        if cached is not None:
            return cached
        task = self._looking_up.get(digest)
        if task is None:
            task = self._looking_up[digest] = asyncio.create_task(self._look_up(digest, key_text))
            task.add_done_callback(lambda _: self._looking_up.pop(digest, None))
        return await asyncio.shield(task)

    async def may_read(self, key_text: str) -> bool:
        """Return whether the key still allows reading. True while the database is unavailable: nothing can be read or revoked then."""
        try:
            caller = await self.caller(key_text)
        except UNAVAILABLE:
            return True
        return caller is not None and caller.may_read

    async def close(self) -> None:
        """Wait for background writes."""
        if self._touching:
            await asyncio.wait(self._touching, timeout=2)

    async def _look_up(self, digest: bytes, key_text: str) -> Caller | None:
        caller = await workspaces.caller_of(self._database, key_text)
        if caller is None:
            self._cached.pop(digest, None)
            return None
        self._cached[digest] = caller
        self._record_use(digest, caller)
        return caller

    def _record_use(self, digest: bytes, caller: Caller) -> None:
        """Record the key's use once a minute, in the background so that the request does not wait for it."""
        if digest in self._recorded:
            return
        self._recorded[digest] = True
        task = asyncio.create_task(self._touch(caller))
        self._touching.add(task)
        task.add_done_callback(self._touching.discard)

    async def _touch(self, caller: Caller) -> None:
        try:
            await workspaces.touch(self._database, caller.workspace_id, caller.key_id)
        except Exception as error:  # noqa: BLE001 - only the time of last use is lost
            log.warning("Recording the use of an API key failed: %s", type(error).__name__)


def bearer(request: Request) -> str:
    """Return the request's API key.

    Raises:
        Problem: 401, the request has none.
    """
    scheme, _, key_text = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key_text.strip():
        raise Problem(401, "Send an API key: Authorization: Bearer tl_…", headers=_NO_KEY)
    return key_text.strip()


async def authenticate(request: Request, keys: ApiKeys) -> Caller:
    """Return the caller of the request.

    Raises:
        Problem: 401, the key is missing, unknown or revoked.
    """
    caller = await keys.caller(bearer(request))
    if caller is None:
        raise Problem(401, "The API key is unknown or was revoked.", headers=_BAD_KEY)
    return caller


def authorise(caller: Caller, *, write: bool) -> None:
    """Return if the caller may write (or read).

    Raises:
        Problem: 403, the caller may not.
    """
    if not (caller.may_write if write else caller.may_read):
        raise Problem(403, "Insufficient permissions for workspace.")
