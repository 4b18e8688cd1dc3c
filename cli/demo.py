"""`turnline demo`: answer one message with everything running on temporary servers, and show how."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.api_client import Api
from cli.errors import SetupError
from cli.standalone.data_dir import DataDir
from cli.standalone.process_utils import free_port, tail
from cli.standalone.stack import LocalStack, Ports
from cli.standalone.supervisor import StopRequested, Supervisor
from cli.standalone.unprivileged import scratch_directory
from cli.workspaces import create_workspace
from settings import Settings, get_settings

QUESTION = "Is order 41 paid?"
MODEL = "gpt-5-mini"
ANSWER_TIMEOUT_S = 60.0
_STYLES = {"customer_message": "cyan", "agent_message": "green", "tool_call": "yellow", "tool_result": "yellow", "status_update": "red"}


@click.command()
def demo() -> None:
    """Answer one message with everything running on temporary servers.

    Prints the session's log as it grows, and the turn's tokens, cost and times. With OPENAI_API_KEY the model is real, else the
    sandbox. Other settings, such as DATABASE_URL, are ignored. Afterwards everything is stopped and removed.
    """
    try:
        run_demo(get_settings())
    except StopRequested:
        sys.exit(130)


def run_demo(settings: Settings) -> None:
    """Start everything, ask one question, print its log and cost, and stop everything.

    Raises:
        SetupError: a process did not start, or no answer came. Nothing is left running.
        StopRequested: a stop was requested. Nothing is left running.
    """
    console = Console(highlight=False, soft_wrap=True)
    began = time.monotonic()
    use_sandbox = not settings.openai_api_key.get_secret_value()
    with scratch_directory("turnline-demo-") as directory:
        supervisor = Supervisor(console.print)
        stack = _stack(DataDir(directory / "home"), settings, supervisor, use_sandbox=use_sandbox)
        with supervisor.signals():
            try:
                model = "the sandbox" if use_sandbox else settings.openai_base_url
                console.print(f"Starting PostgreSQL, Valkey, API, workers, beat and Flower on free ports; the model is {model}.")
                stack.start()
                console.print(f"Everything is ready after {time.monotonic() - began:.1f} s.\n")
                with supervisor.interruptible():
                    _ask(stack, console)
                console.print(
                    f"\nDuring the demo, the API's documentation was at {stack.api_url}/docs and Flower at {stack.flower_url}.\n"
                    "`make up` keeps everything running and prints both addresses; `turnline chat AGENT` talks to an agent."
                )
            except SetupError as error:
                raise SetupError(_with_logs(error, stack)) from error
            finally:
                supervisor.stop(kill=True)  # the data is temporary, so an orderly stop is not worth waiting for
    console.print(f"Everything has stopped; nothing is left running. The demo took {time.monotonic() - began:.1f} s.")


def _stack(data_dir: DataDir, settings: Settings, supervisor: Supervisor, *, use_sandbox: bool) -> LocalStack:
    """Return a stack with its own servers on free ports, ignoring DATABASE_URL etc.: the demo must not write to a real database."""
    ports = Ports(api=free_port(), flower=free_port(), postgres=0, valkey=0, sandbox=free_port())
    loopback = {"api_host": "127.0.0.1", "flower_host": "127.0.0.1"}
    own = settings.model_copy(update={"database_url": "", "broker_url": "", "redis_url": "", "log_level": "INFO", **loopback})
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TURNLINE_", "CELERY_", "FLOWER_"))}
    for name in ("DATABASE_URL", "REDIS_URL", "LOG_LEVEL"):
        env.pop(name, None)
    env["TURNLINE_ALLOWED_NETWORKS"] = "127.0.0.0/8"  # the demo's tool is on loopback, which tools may not reach by default
    if use_sandbox:
        env |= {"OPENAI_API_KEY": "sk-demo", "OPENAI_BASE_URL": f"http://127.0.0.1:{ports.sandbox}/v1"}
    return LocalStack(data_dir, own, ports, supervisor, environ=env, fast=True)


def _ask(stack: LocalStack, console: Console) -> None:
    """Create an agent with a tool, send it the question, and print the log and the turn."""
    workspace = create_workspace(stack.settings.model_copy(update={"database_url": stack.env["DATABASE_URL"]}), "demo")
    with Api(stack.api_url, workspace.api_key) as api:
        agent = api.post(
            "/v1/agents",
            {
                "name": "Order desk",
                "system_prompt": "You answer questions about orders. Look orders up before you answer. Be brief.",
                "model_provider": "openai",
                "model_name": MODEL,
            },
        )
        tool = api.post(
            "/v1/tools",
            {
                "name": "orders_lookup",
                "description": "Looks up an order: whether it is paid, and its total.",
                "parameters": {"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"]},
                "effect": "pure",
            },
        )
        api.post(
            f"/v1/tools/{tool['id']}/integrations",
            {
                "integration_type": "custom_tool",
                "target_id": "orders",
                "configuration": {"url": f"http://127.0.0.1:{stack.ports.sandbox}/tools/orders_lookup"},
            },
        )
        api.put(f"/v1/agents/{agent['id']}/tools", {"tool_ids": [tool["id"]]})
        session = api.post("/v1/sessions", {"agent_id": agent["id"]})
        with api.stream(f"/v1/sessions/{session['id']}/stream") as events:
            accepted = api.post(f"/v1/sessions/{session['id']}/messages", {"text": QUESTION})
            _print_log(events, console)
        _print_turn(_finished_turn(api, accepted["turn"]["id"]), console)


def _print_log(events: Iterator[tuple[str, dict[str, Any]]], console: Console) -> None:
    """Print the session's log as it grows, with streamed tokens, until the agent has answered."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    streaming = False
    console.print("[bold]The session's log[/bold]")
    for name, data in events:
        if time.monotonic() > deadline:
            break
        if name == "delta":
            if not streaming:
                console.print("  [dim]tokens[/dim] ", end="")
            streaming = True
            console.print(escape(str(data.get("text", ""))), end="", style="green")
            continue
        if streaming:
            console.print()
            streaming = False
        if "kind" not in data:
            continue
        kind, content = str(data["kind"]), data["content"]
        console.print(f"  {data['offset']}  [{_STYLES.get(kind, 'white')}]{kind:<17}[/] {escape(_summary(kind, content))}")
        if kind == "agent_message":
            return
        if kind == "status_update":
            raise SetupError(f"The turn ended without an answer: {_summary(kind, content)}")
    raise SetupError(f"No answer came within {ANSWER_TIMEOUT_S:.0f} s.")


def _summary(kind: str, content: Mapping[str, Any]) -> str:
    if kind == "tool_call":
        return f"{content['tool_name']} {json.dumps(content['arguments'])}"
    if kind == "tool_result":
        return f"{content['status']} {json.dumps(content.get('result', content.get('error')))}"
    return str(content.get("text") or json.dumps(content))


def _finished_turn(api: Api, turn_id: str) -> dict[str, Any]:
    """Return the turn, waiting up to 10 s for its last commit, which follows the reply."""
    deadline = time.monotonic() + 10
    while (turn := api.get(f"/v1/turns/{turn_id}"))["status"] in ("queued", "running"):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return turn


def _print_turn(turn: dict[str, Any], console: Console) -> None:
    usage, stages, cost = turn["usage"], turn["stages_ms"], turn["cost_usd"]
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for label, name in (
        ("input tokens", "input_tokens"),
        ("  of which cached", "cached_input_tokens"),
        ("output tokens", "output_tokens"),
        ("  of which reasoning", "reasoning_tokens"),
    ):
        table.add_row(label, f"{usage[name]}")
    table.add_row("cost", "unpriced" if cost is None else f"${Decimal(cost):f}")
    for stage in ("queued", "model", "tool", "commit"):
        if stages.get(stage) is not None:
            table.add_row(f"time: {stage}", f"{stages[stage]} ms")
    console.print(f"\n[bold]Turn {turn['id']}[/bold] is {turn['status']}")
    console.print(table)


def _with_logs(error: SetupError, stack: LocalStack) -> str:
    """Return the error's text with the ends of the API's and the worker's log, unless it contains the end of a log already."""
    if "The end of" in str(error):
        return str(error)
    ends = [(log.stem, tail(log, 5)) for log in sorted(stack.data_dir.logs.glob("*.log")) if log.stem in ("api", "worker")]
    return str(error) + "".join(f"\nThe end of the log of {name}:\n{text}" for name, text in ends if text)
