"""Secrets at rest."""

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
def test_what_was_sealed_opens_again(plain):
    box, workspace_id, row_id = SecretBox(_key()), uuid4(), uuid4()

    sealed = box.seal(workspace_id, row_id, "token", plain)

    assert box.open(workspace_id, row_id, "token", sealed) == plain
    assert not plain or plain not in sealed


def test_the_same_secret_looks_different_each_time():
    box, ids = SecretBox(_key()), (uuid4(), uuid4())

    assert len({box.seal(*ids, "token", "hunter2") for _ in range(50)}) == 50


def test_a_sealed_text_opens_nowhere_else():
    box, workspace_id, row_id = SecretBox(_key()), uuid4(), uuid4()
    sealed = box.seal(workspace_id, row_id, "token", "hunter2")

    for place in ((uuid4(), row_id, "token"), (workspace_id, uuid4(), "token"), (workspace_id, row_id, "other")):
        with pytest.raises(Rejected, match="not sealed for this row"):
            box.open(*place, sealed)


def test_a_sealed_text_that_was_changed_does_not_open():
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
def test_what_is_no_sealed_text_is_refused(text):
    box, ids = SecretBox(_key()), (uuid4(), uuid4())
    key_id = box.seal(*ids, "token", "x").split(".")[1]

    with pytest.raises(Rejected):
        box.open(*ids, "token", text.replace("KEY", key_id))


def test_after_a_rotation_old_texts_open_and_new_ones_take_the_new_key():
    old, new, ids = _key(), _key(), (uuid4(), uuid4())
    before, after = SecretBox(old), SecretBox(f" {new} , {old} ")
    kept = before.seal(*ids, "token", "hunter2")

    assert after.open(*ids, "token", kept) == "hunter2"
    assert after.seal(*ids, "token", "hunter2").split(".")[1] == SecretBox(new).seal(*ids, "token", "x").split(".")[1]
    with pytest.raises(Rejected, match="TURNLINE_SECRET_KEYS"):
        SecretBox(new).open(*ids, "token", kept)


def test_without_a_key_nothing_is_sealed():
    with pytest.raises(Rejected, match="the operator has not set TURNLINE_SECRET_KEYS"):
        SecretBox("").seal(uuid4(), uuid4(), "token", "hunter2")


@pytest.mark.parametrize("keys", ["hunter2", base64.b64encode(b"short").decode(), f"{'A' * 43}=,hunter2", "!" * 44])
def test_a_key_that_is_none_is_refused_and_not_repeated(keys):
    with pytest.raises(ValueError, match="32 bytes in base64") as refused:
        SecretBox(keys)
    assert keys not in str(refused.value)
