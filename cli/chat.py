"""`turnline chat AGENT`: a conversation in the terminal, over the product's own API."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import click

from cli.api_client import Api
from cli.errors import SetupError
from cli.standalone.data_dir import DataDir
from settings import Settings

ENDS = ("failed", "dead", "cancelled")  # what says of itself, as a status, that no reply will come


def chat(settings: Settings, agent: str, *, url: str | None, api_key: str | None, session_id: str | None) -> None:
    """Send each line of standard input to `agent` and print its reply as it comes, until the input ends. Ctrl-C cancels a reply.

    Raises:
        SetupError: no key, no such agent, or the API cannot be reached.
    """
    with opened(settings, url, api_key) as api:
        found = agent_of(api, agent)
        session = api.get(f"/v1/sessions/{session_id}") if session_id else api.post("/v1/sessions", {"agent_id": found["id"]})
        click.echo(f"Session {session['id']} with {found['name']}. An empty line or Ctrl-D ends it; Ctrl-C cancels a reply.")
        after = _last_offset(api, session["id"])
        for text in _lines():
            with api.stream(f"/v1/sessions/{session['id']}/stream", after) as events:
                turn = api.post(f"/v1/sessions/{session['id']}/messages", {"text": text})["turn"]
                try:
                    after = _answer(events)
                except KeyboardInterrupt:
                    if turn is None:  # a person answers there
                        raise
                    after = _cancelled(api, session["id"], turn["id"], after)


def opened(settings: Settings, url: str | None, api_key: str | None) -> Api:
    """The API at `url`, or of this machine, called with `api_key`, or with the key that `turnline up` made.

    Raises:
        SetupError: there is no key.
    """
    home = DataDir(settings.home)
    key = api_key or (home.secrets().api_key if home.exists() else "")
    if not key:
        raise SetupError("No API key: set TURNLINE_API_KEY. `turnline workspace create NAME` makes one.")
    return Api(url or f"http://127.0.0.1:{settings.api_port}", key)


def agent_of(api: Api, wanted: str) -> dict[str, Any]:
    """The agent of that id or name.

    Raises:
        SetupError: there is none, or there are several.
    """
    with contextlib.suppress(ValueError):
        return api.get(f"/v1/agents/{UUID(wanted)}")
    agents: list[dict[str, Any]] = api.get("/v1/agents", search=wanted, limit=100)["items"]
    exact = [agent for agent in agents if agent["name"].casefold() == wanted.casefold()] or agents
    if len(exact) == 1:
        return exact[0]
    if not exact:
        raise SetupError(f"There is no agent named {wanted!r}. POST /v1/agents makes one.")
    raise SetupError(
        f"Several agents are meant by {wanted!r}; use an id: " + ", ".join(f"{agent['id']} ({agent['name']})" for agent in exact)
    )


def _last_offset(api: Api, session_id: str) -> int:
    after = -1
    while events := api.get(f"/v1/sessions/{session_id}/events", after=after, limit=100)["events"]:
        after = events[-1]["offset"]
    return after


def _lines() -> Iterator[str]:
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if not line:
            return
        yield line


def _cancelled(api: Api, session_id: str, turn_id: str, after: int) -> int:
    """Cancel the turn and wait a moment until the log says so; returns the offset it stands at."""
    api.post(f"/v1/turns/{turn_id}/cancel", {})
    api.get(f"/v1/sessions/{session_id}/events", after=after, kind="status_update", wait=10)
    click.secho("\nCancelled.", fg="red")
    return _last_offset(api, session_id)


def _answer(events: Iterator[tuple[str, dict[str, Any]]]) -> int:
    """Print the reply as it comes; returns the offset it stands at."""
    streamed = False
    for name, data in events:
        if name == "delta":
            click.echo(data.get("text", ""), nl=False)
            streamed = True
            continue
        kind = data.get("kind")
        if kind == "tool_call":
            click.secho(f"  [{data['content']['tool_name']}]", dim=True)
        elif kind == "agent_message":
            click.echo("" if streamed else data["content"]["text"])
            return int(data["offset"])
        elif kind == "status_update" and data["content"]["status"] == "approval_requested":
            click.secho(f"  [{data['content']['tool_name']} waits for a person's approval]", dim=True)
        elif kind == "status_update" and data["content"]["status"] in ENDS:
            click.secho(data["content"].get("text") or "The agent could not answer.", fg="red")
            return int(data["offset"])
    raise SetupError("The stream ended before the reply. What was said is kept; ask again.")
