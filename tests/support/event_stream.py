"""A client of a session's server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.support.api_server import Tenant


@dataclass(slots=True)
class Frame:
    """One server-sent event, or a comment."""

    event: str = ""
    data: str = ""
    id: str | None = None
    comment: str = ""

    @property
    def value(self) -> Any:
        """Return the decoded data."""
        return json.loads(self.data)


class Stream:
    """An open stream, read frame by frame."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()

    def frame(self) -> Frame:
        """Return the next frame with content."""
        frame, retry = Frame(), False
        for line in self._lines:
            if line == "":
                if not retry:
                    return frame
                frame, retry = Frame(), False
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match name:
                case "event":
                    frame.event = value
                case "data":
                    frame.data += value
                case "id":
                    frame.id = value
                case "retry":
                    assert value == "1000"
                    retry = True
                case "":
                    frame.comment = value
        raise EOFError

    def frames(self, count: int) -> list[Frame]:
        """Return the next frames."""
        return [self.frame() for _ in range(count)]

    def ended(self) -> bool:
        """Return True when the stream ends; fail if anything but comments arrives before."""
        try:
            while True:
                assert self.frame().comment
        except EOFError:
            return True


@contextmanager
def streaming(acme: Tenant, session_id: str, query: str = "", **headers: str) -> Iterator[Stream]:
    """Open the session's stream."""
    with acme.http.stream("GET", f"/v1/sessions/{session_id}/stream{query}", headers=headers) as response:
        assert response.status_code == 200, response.read()
        yield Stream(response)
