"""Incremental parser for server-sent events, after the WHATWG standard."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import Malformed

MAX_EVENT_BYTES = 1024 * 1024
_LF, _CR = 0x0A, 0x0D


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event: its `event` field ("message" by default) and its `data` lines, joined by newlines."""

    event: str
    data: str


class SseParser:
    """Turns chunks of bytes into events. Lines are decoded when complete, so a chunk may end within a UTF-8 character.

    `peer` names the server in error messages.
    """

    def __init__(self, *, peer: str = "The server", max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._peer = peer
        self._max_event_bytes = max_event_bytes
        self._buffer = bytearray()
        self._scanned = 0
        self._at_start = True
        self._after_cr = False
        self._event = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """Return the events that `chunk` completes, in order. An event that is incomplete at the end of the stream is dropped.

        Raises:
            Malformed: an event exceeds the size limit.
        """
        self._buffer += chunk
        events = []
        while (line := self._next_line()) is not None:
            if (event := self._take(line)) is not None:
                events.append(event)
        if self._size + len(self._buffer) > self._max_event_bytes:
            raise self._too_long()
        return events

    def _next_line(self) -> bytes | None:
        buffer = self._buffer
        if self._after_cr and buffer:
            # The LF of a CRLF; its CR, perhaps in an earlier chunk, ended the last line.
            if buffer[0] == _LF:
                del buffer[0]
            self._after_cr = False
        lf, cr = buffer.find(b"\n", self._scanned), buffer.find(b"\r", self._scanned)
        if lf < 0 and cr < 0:
            self._scanned = len(buffer)
            return None
        end = lf if cr < 0 else cr if lf < 0 else min(lf, cr)
        line = bytes(buffer[:end])
        self._after_cr = buffer[end] == _CR
        del buffer[: end + 1]
        self._scanned = 0
        return line

    def _take(self, line: bytes) -> ServerEvent | None:
        if self._at_start:
            line, self._at_start = line.removeprefix(b"\xef\xbb\xbf"), False
        if not line:
            event = ServerEvent(self._event or "message", "\n".join(self._data)) if self._data else None
            self._event, self._data, self._size = "", [], 0
            return event
        self._size += len(line)
        if self._size > self._max_event_bytes:
            raise self._too_long()
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" ").decode("utf-8", "replace"))
        elif name == b"event":
            self._event = value.removeprefix(b" ").decode("utf-8", "replace")
        return None  # comments (no name), id, retry and unknown fields are ignored

    def _too_long(self) -> Malformed:
        return Malformed(f"{self._peer} sent an event longer than {self._max_event_bytes} bytes")
