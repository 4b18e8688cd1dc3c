"""The SSE parser: the standard's examples, and the same result for any chunking."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Malformed
from integrations.sse_parser import ServerEvent, SseParser


def parse(*chunks: bytes) -> list[ServerEvent]:
    parser = SseParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [("message", "a")]),
        (b"data:a\r\n\r\n", [("message", "a")]),
        (b"data: a\r\rdata: b\r\r", [("message", "a"), ("message", "b")]),
        (b"data:  two spaces\n\n", [("message", " two spaces")]),
        (b"data: a\ndata\ndata: b\n\n", [("message", "a\n\nb")]),
        (b": comment\n\n:\n\ndata: a\n\n", [("message", "a")]),
        (b"event: error\ndata: {}\n\ndata: next\n\n", [("error", "{}"), ("message", "next")]),
        (b"event: nothing\n\ndata: a\n\n", [("message", "a")]),
        (b"id: 1\nretry: 5\nfoo: x\nDATA: no\ndata: a\n\n", [("message", "a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [("message", "a")]),
        (b"data: a\n", []),
        (b"data: a", []),
        (b"data\n\n", [("message", "")]),
        (b"data: \xc3\xa9 \xff\n\n", [("message", "é \ufffd")]),
        (b"", []),
    ],
)
def test_streams_are_parsed_by_the_standard(stream: bytes, events: list[tuple[str, str]]):
    expected = [ServerEvent(*event) for event in events]
    assert parse(stream) == expected
    assert parse(*(stream[n : n + 1] for n in range(len(stream)))) == expected


lines = st.lists(st.text(st.characters(exclude_characters="\r\n\ufeff", codec="utf-8")), min_size=1, max_size=3)


@given(
    events=st.lists(lines, max_size=6),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    noise=st.booleans(),
    cuts=st.lists(st.integers(0, 400)),
)
def test_any_chunking_gives_the_same_events(events: list[list[str]], newline: str, noise: bool, cuts: list[int]):
    stream = "".join(
        (f": ping{newline}" if noise else "") + "".join(f"data: {line}{newline}" for line in event) + newline for event in events
    ).encode()
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    chunks = [stream[start:end] for start, end in pairwise(places)]

    assert [event.data for event in parse(*chunks)] == ["\n".join(event) for event in events]


@given(st.lists(st.binary(max_size=40)))
def test_garbage_never_raises_and_chunking_changes_nothing(chunks: list[bytes]):
    assert parse(*chunks) == parse(b"".join(chunks))


@pytest.mark.parametrize("stream", [b"data: " + b"x" * 2000, b"data: x\n" * 400, b"x" * 2000, b": " + b"x" * 2000])
def test_long_events_are_malformed(stream: bytes):
    parser = SseParser(max_event_bytes=1000)
    with pytest.raises(Malformed, match="longer than 1000"):  # noqa: PT012
        for place in range(0, len(stream), 100):
            parser.feed(stream[place : place + 100])


def test_the_limit_applies_to_each_event():
    parser = SseParser(max_event_bytes=100)
    assert sum(len(parser.feed(b": ping\n\ndata: 0123456789\n\n")) for _ in range(1000)) == 1000
