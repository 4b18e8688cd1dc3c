"""Encryption of stored secrets."""

from __future__ import annotations

import base64
import os
from uuid import uuid4

import pytest

from engine.errors import Rejected
from store.encryption import SecretBox


def _key():
    return base64.b64encode(os.urandom(32)).decode()


@pytest.mark.parametrize("plain", ["hunter2", "", "Grüße 🦩", "x" * 4000])
def test_decrypts_what_it_encrypted(plain):
    box, workspace_id, row_id = SecretBox(_key()), uuid4(), uuid4()

    sealed = box.seal(workspace_id, row_id, "token", plain)

    assert box.open(workspace_id, row_id, "token", sealed) == plain
    assert not plain or plain not in sealed


def test_ciphertexts_of_same_secret_differ():
    box, ids = SecretBox(_key()), (uuid4(), uuid4())

    assert len({box.seal(*ids, "token", "hunter2") for _ in range(50)}) == 50


def test_ciphertext_is_bound_to_workspace_row_and_name():
    box, workspace_id, row_id = SecretBox(_key()), uuid4(), uuid4()
    sealed = box.seal(workspace_id, row_id, "token", "hunter2")

    for place in ((uuid4(), row_id, "token"), (workspace_id, uuid4(), "token"), (workspace_id, row_id, "other")):
        with pytest.raises(Rejected, match="not sealed for this row"):
            box.open(*place, sealed)


def test_changed_ciphertext_is_rejected():
    box, ids = SecretBox(_key()), (uuid4(), uuid4())
    version, key_id, body = box.seal(*ids, "token", "hunter2").split(".")
    raw = base64.b64decode(body)

    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(Rejected) as refused:
            box.open(*ids, "token", ".".join((version, key_id, base64.b64encode(changed).decode())))
        assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", ".", "v1", "v1.00000000", "v1.00000000.", "v2.00000000.AAAA", "hunter2", "v1.KEY.", "v1.KEY.AAAA", "v1.KEY.!!!!"]
)
def test_invalid_ciphertext_is_rejected(text):
    box, ids = SecretBox(_key()), (uuid4(), uuid4())
    key_id = box.seal(*ids, "token", "x").split(".")[1]

    with pytest.raises(Rejected):
        box.open(*ids, "token", text.replace("KEY", key_id))


def test_key_rotation_decrypts_old_and_encrypts_with_new_key():
    old, new, ids = _key(), _key(), (uuid4(), uuid4())
    before, after = SecretBox(old), SecretBox(f" {new} , {old} ")
    kept = before.seal(*ids, "token", "hunter2")

    assert after.open(*ids, "token", kept) == "hunter2"
    assert after.seal(*ids, "token", "hunter2").split(".")[1] == SecretBox(new).seal(*ids, "token", "x").split(".")[1]
    with pytest.raises(Rejected, match="TURNLINE_SECRET_KEYS"):
        SecretBox(new).open(*ids, "token", kept)


def test_encrypting_without_key_is_rejected():
    with pytest.raises(Rejected, match="the operator has not set TURNLINE_SECRET_KEYS"):
        SecretBox("").seal(uuid4(), uuid4(), "token", "hunter2")


@pytest.mark.parametrize("keys", ["hunter2", base64.b64encode(b"short").decode(), f"{'A' * 43}=,hunter2", "!" * 44])
def test_invalid_key_is_rejected_without_quoting_it(keys):
    with pytest.raises(ValueError, match="32 bytes in base64") as refused:
        SecretBox(keys)
    assert keys not in str(refused.value)
