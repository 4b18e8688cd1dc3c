"""The product's own HTTP API, as `turnline chat` and the demo use it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import httpx

from cli.errors import SetupError
from integrations.sse_parser import SseParser

_SILENCE_S = 60.0  # a stream says at least a keep-alive this often


class Api:
    """One caller of the API, with its key. Failures are sentences: `SetupError`."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self.base_url = base_url
        self._http = httpx.Client(
            base_url=base_url,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(30.0, read=_SILENCE_S),
            trust_env=False,  # no proxy between us and loopback
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **query: str | int) -> dict[str, Any]:
        """What GET `path` answers."""
        return self._ask("GET", path, params=query)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What POST `path` answers."""
        return self._ask("POST", path, json=body)

    def put(self, path: str, body: Any) -> dict[str, Any]:
        """What PUT `path` answers."""
        return self._ask("PUT", path, json=body)

    @contextmanager
    def stream(self, path: str, after: int | None = None) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
        """Server-sent events of `path`, (event, data) each, from those behind offset `after` on; open when the block begins.

        Whenever something came that was no whole event, a ("", {}), so that whoever waits can look at the clock.
        """
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        with self._said(), self._http.stream("GET", path, headers=headers) as response:
            if response.status_code != 200:
                response.read()
                raise SetupError(_refusal(response))
            yield self._events(response)

    def _events(self, response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
        parser = SseParser(whom="The API")
        for chunk in response.iter_raw():
            events = parser.feed(chunk)
            for event in events:
                yield event.event, json.loads(event.data)
            if not events:
                yield "", {}

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        with self._said():
            response = self._http.request(method, path, **options)
        if response.status_code >= 400:
            raise SetupError(_refusal(response))
        answer: dict[str, Any] = response.json()
        return answer

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise SetupError(f"The API at {self.base_url} did not answer in time.") from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise SetupError(
                f"The API at {self.base_url} cannot be reached ({error}). Is `turnline up` or `turnline api` running?"
            ) from error


def _refusal(response: httpx.Response) -> str:
    """What the API said no with, from its problem document."""
    request = response.request
    try:
        problem = response.json()
        words = problem.get("detail") or problem.get("title") or ""
    except (ValueError, AttributeError):
        words = ""
    if response.status_code == 401:
        words = words or "the API key is not accepted"
        words += " Set TURNLINE_API_KEY, or make a key with `turnline workspace create`."
    return f"{request.method} {request.url.path} was answered with {response.status_code}: {words or response.reason_phrase}"
