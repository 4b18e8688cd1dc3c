"""`turnline chat`: a conversation in the terminal, over our own API."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from cli.api_client import Api, connect, find_agent
from cli.errors import SetupError
from cli.options import api_key_option, url_option
from settings import get_settings

FINAL_STATUSES = ("failed", "dead", "cancelled")  # status updates after which no reply will follow


@click.command()
@click.argument("agent")
@url_option
@api_key_option
@click.option("--session", "session_id", metavar="ID", help="Continue this session instead of starting a new one.")
def chat(agent: str, url: str | None, api_key: str | None, session_id: str | None) -> None:
    """Talk to AGENT in the terminal.

    AGENT is a name or an id. Replies are printed as they stream. An empty line or Ctrl-D ends the conversation; Ctrl-C cancels a
    reply. Needs a running API, such as that of `turnline up`.

    \b
    Example:
      turnline chat "Order desk"
    """
    with connect(get_settings(), url, api_key) as api:
        found = find_agent(api, agent)
        session = api.get(f"/v1/sessions/{session_id}") if session_id else api.post("/v1/sessions", {"agent_id": found["id"]})
        click.echo(f"Session {session['id']} with {found['name']}. An empty line or Ctrl-D ends it; Ctrl-C cancels a reply.")
        after = _last_offset(api, session["id"])
        for text in _input_lines():
            with api.stream(f"/v1/sessions/{session['id']}/stream", after) as events:
                turn = api.post(f"/v1/sessions/{session['id']}/messages", {"text": text})["turn"]
                try:
                    after = _print_reply(events)
                except KeyboardInterrupt:
                    if turn is None:  # a person answers in this session, so there is no turn to cancel
                        raise
                    after = _cancel(api, session["id"], turn["id"], after)


def _last_offset(api: Api, session_id: str) -> int:
    after = -1
    while events := api.get(f"/v1/sessions/{session_id}/events", after=after, limit=100)["events"]:
        after = events[-1]["offset"]
    return after


def _input_lines() -> Iterator[str]:
    """Yield the lines of standard input until an empty line or its end."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if not line:
            return
        yield line


def _cancel(api: Api, session_id: str, turn_id: str, after: int) -> int:
    """Cancel the turn, wait up to 10 s for the log to show it, and return the log's last offset."""
    api.post(f"/v1/turns/{turn_id}/cancel", {})
    api.get(f"/v1/sessions/{session_id}/events", after=after, kind="status_update", wait=10)
    click.secho("\nCancelled.", fg="red")
    return _last_offset(api, session_id)


def _print_reply(events: Iterator[tuple[str, dict[str, Any]]]) -> int:
    """Print the reply as it streams, and return its offset."""
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
            click.secho(f"  [{data['content']['tool_name']} is waiting for a person's approval]", dim=True)
        elif kind == "status_update" and data["content"]["status"] in FINAL_STATUSES:
            click.secho(data["content"].get("text") or "The agent could not answer.", fg="red")
            return int(data["offset"])
    raise SetupError("The stream ended before the reply. Your message is stored; continue with --session.")
