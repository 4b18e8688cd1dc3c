"""Codes become sentences, and stored sentences stay unchanged."""

from __future__ import annotations

import json

import pytest

from engine.sentences import PLAIN, SENTENCES, sentence, with_sentences

SPENT = {"code": "budget_spent", "scope": "agent", "period": "day", "unit": "usd", "cap": "1.5", "spent": "1", "reserved": "0.25"}
WAITED = {"code": "waited_for_tools", "tools": ["orders_lookup", "refund"]}


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        (None, None),
        ("result_lost", "It was started and its result was lost: it may or may not have happened."),
        ({"code": "waited_for_model"}, "while it waited for the model"),
        (WAITED, "while it waited for orders_lookup, refund"),
        (json.dumps(WAITED), "while it waited for orders_lookup, refund"),
        ({"code": "attempts_spent", "attempts": 5}, "claimed 5 times without an outcome"),
        (
            json.dumps({"code": "attempts_spent", "attempts": 5, "last": {"error_class": "WorkerLost", "detail": WAITED}}),
            "claimed 5 times without an outcome; last: WorkerLost, while it waited for orders_lookup, refund",
        ),
        (
            {"code": "attempts_spent", "attempts": 2, "last": {"error_class": "RateLimited", "detail": "HTTP 429"}},
            "claimed 2 times without an outcome; last: RateLimited, HTTP 429",
        ),
        (SPENT | {"requested": "0.5"}, "The agent's daily budget of $1.5 is spent: $1 spent, $0.25 reserved, $0.5 more wanted."),
        (
            SPENT | {"requested": "7", "unit": "tokens", "period": "total", "cap": "9"},
            "The agent's total budget of 9 tokens is spent: 1 tokens spent, 0.25 tokens reserved, 7 tokens more wanted.",
        ),
    ],
)
def test_code_becomes_sentence(stored: object, text: str | None):
    assert sentence(stored) == text


@pytest.mark.parametrize(
    "stored",
    [
        "claimed 5 times without coming to a rest; last: WorkerLost, while it waited for the model",
        "HTTP 429",
        '{"code": "rate_limit_exceeded", "message": "a provider\'s error"}',
        '{"code": ["no", "text"]}',
        '{"error": {}}',
        '{"code": "attempts_spent"}',
        '{"code": "attempts_spent", "attempts": 1, "last": 5}',
        '{"code": ' + "[" * 1900,
        "{not JSON",
        "",
    ],
)
def test_stored_sentence_is_returned_unchanged(stored: str):
    assert sentence(stored) == stored


def test_content_gets_sentences_in_place_of_codes():
    content = {"status": "cancelled", "text_code": "reply_cancelled", "by": "ops"}
    assert with_sentences(content) == {"status": "cancelled", "text": "The reply was cancelled.", "by": "ops"}
    assert with_sentences({"tool_call_id": "c1", "error_code": "not_made"})["error"] == "It was not made: the turn ended first."
    assert content["text_code"] == "reply_cancelled", "the row's value is not changed"


def test_content_of_earlier_versions_is_unchanged():
    content = {"status": "cancelled", "text": "The reply was cancelled."}
    assert with_sentences(content) is content


def test_every_plain_code_has_a_sentence():
    assert PLAIN.keys() <= SENTENCES.keys()
    assert all(sentence(code) == text for code, text in PLAIN.items())
