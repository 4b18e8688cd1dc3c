"""A small client of our own HTTP API, for `turnline chat`, `turnline analytics` and the demo."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self
from uuid import UUID

import httpx

from cli.errors import SetupError
from cli.standalone.data_dir import DataDir
from integrations.sse_parser import SseParser
from settings import Settings

_READ_TIMEOUT_S = 60.0  # a stream sends at least keep-alives, more often than this


class Api:
    """The API as one key sees it. Every failure is a `SetupError`."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self.base_url = base_url
        self._http = httpx.Client(
            base_url=base_url,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(30.0, read=_READ_TIMEOUT_S),
            trust_env=False,  # never send requests to loopback through a proxy
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **query: str | int) -> dict[str, Any]:
        """Return the response to GET `path`."""
        return self._request("GET", path, params=query)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the response to POST `path`."""
        return self._request("POST", path, json=body)

    def put(self, path: str, body: Any) -> dict[str, Any]:
        """Return the response to PUT `path`."""
        return self._request("PUT", path, json=body)

    @contextmanager
    def stream(self, path: str, after: int | None = None) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
        """Open the server-sent events of `path` and yield an iterator of (event name, data), from the event behind offset `after`.

        The stream is open when the block begins. Data that completes no event, such as a keep-alive, yields ("", {}), so that the
        caller can check a deadline.
        """
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        with self._translated_errors(), self._http.stream("GET", path, headers=headers) as response:
            if response.status_code != 200:
                response.read()
                raise SetupError(_error_message(response))
            yield self._events(response)

    def _events(self, response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
        parser = SseParser(peer="The API")
        for chunk in response.iter_raw():
            events = parser.feed(chunk)
            for event in events:
                yield event.event, json.loads(event.data)
            if not events:
                yield "", {}

    def _request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        with self._translated_errors():
            response = self._http.request(method, path, **options)
        if response.status_code >= 400:
            raise SetupError(_error_message(response))
        document: dict[str, Any] = response.json()
        return document

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise SetupError(f"The API at {self.base_url} did not answer in time.") from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise SetupError(
                f"The API at {self.base_url} cannot be reached ({error}). Is `turnline up` or `turnline api` running?"
            ) from error


def connect(settings: Settings, url: str | None, api_key: str | None) -> Api:
    """Return the API at `url`, by default of this machine, called with `api_key`, by default that of `turnline up`.

    Raises:
        SetupError: there is no key.
    """
    data_dir = DataDir(settings.home)
    key = api_key or (data_dir.secrets().api_key if data_dir.is_initialized() else "")
    if not key:
        raise SetupError("There is no API key: set TURNLINE_API_KEY. `turnline workspace create NAME` creates one.")
    return Api(url or f"http://127.0.0.1:{settings.api_port}", key)


def find_agent(api: Api, name_or_id: str) -> dict[str, Any]:
    """Return the agent with this id or name. Case does not matter, and part of a name is enough if it is unambiguous.

    Raises:
        SetupError: there is no such agent, or several match.
    """
    with contextlib.suppress(ValueError):
        return api.get(f"/v1/agents/{UUID(name_or_id)}")
    agents: list[dict[str, Any]] = api.get("/v1/agents", search=name_or_id, limit=100)["items"]
    matches = [agent for agent in agents if agent["name"].casefold() == name_or_id.casefold()] or agents
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise SetupError(f"There is no agent named {name_or_id!r}. POST /v1/agents creates one.")
    listed = ", ".join(f"{agent['id']} ({agent['name']})" for agent in matches)
    raise SetupError(f"Several agents match {name_or_id!r}; give an id: {listed}")


def _error_message(response: httpx.Response) -> str:
    """Return a sentence for an error response, with the detail of its problem document."""
    request = response.request
    try:
        problem = response.json()
        detail = problem.get("detail") or problem.get("title") or ""
    except (ValueError, AttributeError):
        detail = ""
    if response.status_code == 401:
        detail = detail or "the API key is not accepted"
        detail += " Set TURNLINE_API_KEY, or create a key with `turnline workspace create`."
    return f"{request.method} {request.url.path} returned {response.status_code}: {detail or response.reason_phrase}"
