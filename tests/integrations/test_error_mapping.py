"""Mapping of failed answers to errors, and parsing of `Retry-After`."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Malformed, ProviderDown, RateLimited, Rejected, TurnlineError
from integrations.error_mapping import LONGEST_RETRY_AFTER_S, of_status, retry_after_s

NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": " 2.5 "}, 2.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "86400"}, 86400.0),
        ({"retry-after": "999999999999"}, LONGEST_RETRY_AFTER_S),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(NOW - 30, usegmt=True)}, 0.0),
        ({"retry-after": formatdate(NOW + 30)}, 30.0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2.0),
        *(
            ({"retry-after": text}, None)
            for text in ("soon", "", "-1", "nan", "inf", "1e9", "0x10", "1_000", "9" * 400, "٣", "Mon, 99 Foo 2026")
        ),
    ],
)
def test_retry_after_is_parsed(headers: dict[str, str], seconds: float | None):
    assert retry_after_s(headers, now=NOW) == seconds


@given(st.text())
def test_garbage_in_retry_after_never_raises(text: str):
    found = retry_after_s({"retry-after": text, "retry-after-ms": text}, now=NOW)
    assert found is None or 0 <= found <= LONGEST_RETRY_AFTER_S


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, RateLimited),
        *((status, ProviderDown) for status in (500, 502, 503, 504, 529, 408, 425)),
        *((status, Rejected) for status in (400, 401, 403, 404, 409, 422, 301, 302, 307)),
        (100, Malformed),
    ],
)
def test_status_codes_become_errors(status: int, kind: type[TurnlineError]):
    error = of_status(status, {"retry-after": "3"}, "The provider", "why")
    assert type(error) is kind
    assert str(status) in str(error)
    assert getattr(error, "retry_after_s", 3) == 3


@pytest.mark.parametrize(
    ("status", "maybe_done"),
    [(500, True), (503, True), (302, True), (303, True), (307, False), (404, False), (429, False), (408, True), (425, False)],
)
def test_maybe_done_of_failed_answers(status: int, maybe_done: bool):
    assert of_status(status, {}, "The tool", server_errors_maybe_done=True).maybe_done is maybe_done
    assert of_status(status, {}, "The provider").maybe_done is False
