"""Quotes of other servers' texts contain no keys and no prompts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integrations.redaction import redact, value_without_secrets, without_secrets


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefgh12345678",
        "Bearer abcdef123456",
        "xai-0123456789ab",
        "AKIA0123456789ABCDEF",
        "ghp_0123456789abcdef",
        "eyJhbGciOi.eyJzdWIi.c2ln",
        "sk-1234********5678",
    ],
)
def test_key_like_words_are_hidden(secret: str):
    assert redact(f"Incorrect key: {secret}, try again") == "Incorrect key: […], try again"


def test_secrets_are_hidden_unless_very_short():
    assert without_secrets("a password and a longer password2", ["password", "password2", "a", " "]) == "a […] and a longer […]"
    assert value_without_secrets({"my password": [1, "password", {"x": "no"}]}, ["password"]) == {"my […]": [1, "[…]", {"x": "no"}]}


def test_quotes_are_a_single_short_line():
    assert redact("a\n\n  b\x00") == "a b\ufffd"
    assert redact("x" * 301) == "x" * 300 + "…"
    assert redact("") == ""


def test_prompts_are_not_quoted():
    prompt = "My name is Ann and my card is 4444."
    assert redact(f"Invalid content: '{prompt}' is not allowed", echoes=[prompt]) == "Invalid content: '[…]' is not allowed"
    assert (
        redact("Invalid content: 'my card is 4444' is not", echoes=["Hello", f"So. {prompt}"]).count("[…]") == 0
    )  # shorter than 16 characters
    assert redact("Invalid content: 'and  my card is 4444' is not", echoes=["Hello", f"So. {prompt}"]) == "Invalid content: '[…]' is not"
    assert (
        redact("This model's maximum context length is 8192 tokens.", echoes=[prompt])
        == "This model's maximum context length is 8192 tokens."
    )


@given(st.text(min_size=16, max_size=200), st.text(max_size=50), st.text(max_size=50))
def test_no_16_characters_of_an_echo_remain(prompt: str, before: str, after: str):
    shown = redact(before + prompt + after, echoes=[prompt], limit=1000)
    plain = " ".join(prompt.split())
    assert not any(
        plain[place : place + 16] in shown
        for place in range(len(plain) - 15)
        if "\x00" not in plain and "[…]" not in plain[place : place + 16]
    )
