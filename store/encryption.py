"""Encryption of secrets at rest. They are encrypted when they are saved and decrypted only in the worker that sends them."""

from __future__ import annotations

import base64
import binascii
import os
from functools import lru_cache
from hashlib import sha256
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from engine.errors import Rejected

VERSION = "v1"
KEY_BYTES = 32
NONCE_BYTES = 12


class SecretBox:
    """Encrypts and decrypts secrets with AES-256-GCM, under a key for each workspace that is derived (HKDF) from a master key.

    A ciphertext is bound to its workspace, row and name: moved to another, it cannot be decrypted.
    """

    def __init__(self, keys: str) -> None:
        """Read `keys`: 32 bytes in base64 each, separated by commas. The first encrypts, all decrypt. Raises ValueError."""
        self._masters: dict[str, bytes] = {}
        for text in filter(None, (part.strip() for part in keys.split(","))):
            try:
                key = base64.b64decode(text, validate=True)
            except binascii.Error:
                key = b""
            if len(key) != KEY_BYTES:
                raise ValueError(f"TURNLINE_SECRET_KEYS: each key must be {KEY_BYTES} bytes in base64, separated by commas")
            self._masters[sha256(key).hexdigest()[:8]] = key

    def seal(self, workspace_id: UUID, row_id: UUID, name: str, plain: str) -> str:
        """Return `plain` encrypted, as text. Raises Rejected if no key is configured."""
        if not self._masters:
            raise Rejected("Secrets cannot be stored: the operator has not set TURNLINE_SECRET_KEYS.")
        key_id, master = next(iter(self._masters.items()))
        nonce = os.urandom(NONCE_BYTES)
        sealed = _cipher(master, workspace_id).encrypt(nonce, plain.encode(), _bound_to(workspace_id, row_id, name))
        return ".".join((VERSION, key_id, base64.b64encode(nonce + sealed).decode()))

    def is_current(self, sealed: str) -> bool:
        """Return whether `sealed` was encrypted with the first key."""
        return sealed.split(".")[1:2] == [next(iter(self._masters), None)]

    def open(self, workspace_id: UUID, row_id: UUID, name: str, sealed: str) -> str:
        """Decrypt a text that `seal` returned for the same workspace, row and name.

        Raises:
            Rejected: its key is not configured any more, it was encrypted for another row or name, or it is damaged.
        """
        version, _, rest = sealed.partition(".")
        key_id, _, body = rest.partition(".")
        master = self._masters.get(key_id)
        if version != VERSION or master is None:
            raise Rejected(f"The secret {name!r} was sealed with a key that TURNLINE_SECRET_KEYS does not hold.")
        try:
            raw = base64.b64decode(body, validate=True)
            nonce, sealed_bytes = raw[:NONCE_BYTES], raw[NONCE_BYTES:]
            return _cipher(master, workspace_id).decrypt(nonce, sealed_bytes, _bound_to(workspace_id, row_id, name)).decode()
        except (InvalidTag, ValueError):
            raise Rejected(f"The secret {name!r} was not sealed for this row, or is damaged.") from None


@lru_cache(maxsize=4096)
def _cipher(master: bytes, workspace_id: UUID) -> AESGCM:
    return AESGCM(HKDF(SHA256(), KEY_BYTES, salt=None, info=b"turnline workspace " + workspace_id.bytes).derive(master))


def _bound_to(workspace_id: UUID, row_id: UUID, name: str) -> bytes:
    return f"{workspace_id}|{row_id}|{name}".encode()
