"""Bearer API keys: whose request is this, and what may it do."""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.requests import Request

from api.errors import Problem
from store.catalog import workspaces
from store.catalog.workspaces import Caller
from store.database import Database

log = logging.getLogger(__name__)

REMEMBER_S = 3.0
REMEMBER_KEYS = 10_000
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="turnline"'}
_REFUSAL = {"WWW-Authenticate": 'Bearer realm="turnline", error="invalid_token"'}


class Keys:
    """Looks keys up, and remembers for a few seconds: a busy key costs one look-up, a revoked one is out soon."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[bytes, tuple[float, Caller]] = {}
        self._asking: dict[bytes, asyncio.Task[Caller | None]] = {}
        self._touched: dict[bytes, float] = {}
        self._touching: set[asyncio.Task[None]] = set()

    async def caller(self, key_text: str) -> Caller | None:
        """Who the key belongs to, or None."""
        digest = workspaces.digest_of(key_text)
        known = self._known.get(digest)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        task = self._asking.get(digest)
        if task is None:
            task = self._asking[digest] = asyncio.create_task(self._ask(digest, key_text))
            task.add_done_callback(lambda _: self._asking.pop(digest, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Let what runs in the background end."""
        if self._touching:
            await asyncio.wait(self._touching, timeout=2)

    async def _ask(self, digest: bytes, key_text: str) -> Caller | None:
        caller = await workspaces.caller_of(self._database, key_text)
        if caller is None:
            self._known.pop(digest, None)
            return None
        if len(self._known) >= REMEMBER_KEYS:
            self._known.clear()
            self._touched.clear()
        self._known[digest] = (time.monotonic() + REMEMBER_S, caller)
        self._note_use(digest, caller)
        return caller

    def _note_use(self, digest: bytes, caller: Caller) -> None:
        """Note the key's use, once a minute, beside the request and not in its way."""
        now = time.monotonic()
        if self._touched.get(digest, 0.0) > now:
            return
        self._touched[digest] = now + workspaces.TOUCH_EVERY_S
        task = asyncio.create_task(self._touch(caller))
        self._touching.add(task)
        task.add_done_callback(self._touching.discard)

    async def _touch(self, caller: Caller) -> None:
        try:
            await workspaces.touch(self._database, caller.workspace_id, caller.key_id)
        except Exception as error:  # noqa: BLE001 - a missing time of last use harms nobody
            log.warning("an API key's use could not be noted: %s", type(error).__name__)


def bearer(request: Request) -> str:
    """The request's key. Raises Problem (401) where it carries none."""
    scheme, _, key_text = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key_text.strip():
        raise Problem(401, "Send an API key: Authorization: Bearer tl_…", headers=_CHALLENGE)
    return key_text.strip()


async def authenticate(request: Request, keys: Keys) -> Caller:
    """Who sends this request. Raises Problem (401) where the key is not one, or was revoked."""
    caller = await keys.caller(bearer(request))
    if caller is None:
        raise Problem(401, "The API key is not known, or was revoked.", headers=_REFUSAL)
    return caller


def authorise(caller: Caller, *, write: bool) -> None:
    """Raises Problem (403) where the caller may not."""
    if not (caller.may_write if write else caller.may_read):
        raise Problem(403, "Insufficient permissions for workspace.")
