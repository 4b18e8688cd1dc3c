"""`make demo`: one real message through everything, on throw-away servers, shown as it happens."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.api_client import Api
from cli.errors import SetupError
from cli.standalone.data_dir import DataDir
from cli.standalone.process_utils import free_port, tail
from cli.standalone.stack import Machine, Ports
from cli.standalone.supervisor import Supervisor
from cli.standalone.unprivileged import scratch_directory
from cli.workspaces import create
from settings import Settings

QUESTION = "Is order 41 paid?"
MODEL = "gpt-5-mini"
ANSWER_WITHIN_S = 60.0
_STYLES = {"customer_message": "cyan", "agent_message": "green", "tool_call": "yellow", "tool_result": "yellow", "status_update": "red"}


def demo(settings: Settings, console: Console | None = None) -> None:
    """Start everything, ask one question, show its log and its cost, stop everything.

    Raises:
        SetupError: something does not start or does not answer; nothing is left running.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    began = time.monotonic()
    stand_in = not settings.openai_api_key.get_secret_value()
    with scratch_directory("turnline-demo-") as directory:
        supervisor = Supervisor(console.print)
        machine = _machine(DataDir(directory / "home"), settings, supervisor, stand_in=stand_in)
        with supervisor.signals():
            try:
                whom = "a stand-in model vendor" if stand_in else settings.openai_base_url
                console.print(f"Starting PostgreSQL, Valkey, API, workers, beat and Flower on free ports; the model is {whom}.")
                machine.start()
                console.print(f"Everything answers after {time.monotonic() - began:.1f} s.\n")
                with supervisor.interruptible():
                    _ask(machine, console)
                console.print(
                    f"\nWhile it ran, the API's documentation was at {machine.api_url}/docs and Flower at {machine.flower_url}.\n"
                    "`make up` keeps everything running and prints both addresses; `turnline chat AGENT` talks to an agent."
                )
            except SetupError as error:
                raise SetupError(_with_log(error, machine)) from error
            finally:
                supervisor.stop(at_once=True)  # throw-away servers: nobody waits for an orderly end
    console.print(f"Everything has stopped; nothing is left running. {time.monotonic() - began:.1f} s in all.")


def _machine(home: DataDir, settings: Settings, supervisor: Supervisor, *, stand_in: bool) -> Machine:
    """Everything on free ports and servers of its own, whatever DATABASE_URL and the like say: a demo writes into nobody's database."""
    ports = Ports(api=free_port(), flower=free_port(), postgres=0, valkey=0, sandbox=free_port())
    loopback = {"api_host": "127.0.0.1", "flower_host": "127.0.0.1"}
    own = settings.model_copy(update={"database_url": "", "broker_url": "", "redis_url": "", "log_level": "INFO", **loopback})
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TURNLINE_", "CELERY_", "FLOWER_"))}
    for name in ("DATABASE_URL", "REDIS_URL", "LOG_LEVEL"):
        kept.pop(name, None)
    kept["TURNLINE_ALLOWED_NETWORKS"] = "127.0.0.0/8"  # the demo's tool is on loopback, where tools may not reach by default
    if stand_in:
        kept |= {"OPENAI_API_KEY": "sk-demo", "OPENAI_BASE_URL": f"http://127.0.0.1:{ports.sandbox}/v1"}
    return Machine(home, own, ports, supervisor, environ=kept, fast=True)


def _ask(machine: Machine, console: Console) -> None:
    workspace = create(machine.settings.model_copy(update={"database_url": machine.env["DATABASE_URL"]}), "demo")
    with Api(machine.api_url, workspace.api_key) as api:
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
                "configuration": {"url": f"http://127.0.0.1:{machine.ports.sandbox}/tools/orders_lookup"},
            },
        )
        api.put(f"/v1/agents/{agent['id']}/tools", {"tool_ids": [tool["id"]]})
        session = api.post("/v1/sessions", {"agent_id": agent["id"]})
        with api.stream(f"/v1/sessions/{session['id']}/stream") as events:
            accepted = api.post(f"/v1/sessions/{session['id']}/messages", {"text": QUESTION})
            _show_log(events, console)
        _show_turn(_settled(api, accepted["turn"]["id"]), console)


def _show_log(events: Iterator[tuple[str, dict[str, Any]]], console: Console) -> None:
    """Print the session's log as it grows, tokens as they stream, until the agent has answered."""
    deadline = time.monotonic() + ANSWER_WITHIN_S
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
        console.print(f"  {data['offset']}  [{_STYLES.get(kind, 'white')}]{kind:<17}[/] {escape(_in_words(kind, content))}")
        if kind == "agent_message":
            return
        if kind == "status_update":
            raise SetupError(f"The turn ended without an answer: {_in_words(kind, content)}")
    raise SetupError(f"No answer came within {ANSWER_WITHIN_S:.0f} s.")


def _in_words(kind: str, content: Mapping[str, Any]) -> str:
    if kind == "tool_call":
        return f"{content['tool_name']} {json.dumps(content['arguments'])}"
    if kind == "tool_result":
        return f"{content['status']} {json.dumps(content.get('result', content.get('error')))}"
    return str(content.get("text") or json.dumps(content))


def _settled(api: Api, turn_id: str) -> dict[str, Any]:
    """The turn once it rests: its last commit follows the reply at once."""
    deadline = time.monotonic() + 10
    while (turn := api.get(f"/v1/turns/{turn_id}"))["status"] in ("queued", "running"):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return turn


def _show_turn(turn: dict[str, Any], console: Console) -> None:
    usage, stages = turn["usage"], turn["stages_ms"]
    cost = turn["cost_usd"]
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for label, name in (
        ("input tokens", "input_tokens"),
        ("  of them cached", "cached_input_tokens"),
        ("output tokens", "output_tokens"),
        ("  of them reasoning", "reasoning_tokens"),
    ):
        table.add_row(label, f"{usage[name]}")
    table.add_row("cost", "unpriced" if cost is None else f"${Decimal(cost):f}")
    for stage in ("queued", "model", "tool", "commit"):
        if stages.get(stage) is not None:
            table.add_row(f"time: {stage}", f"{stages[stage]} ms")
    console.print(f"\n[bold]Turn {turn['id']}[/bold] is {turn['status']}")
    console.print(table)


def _with_log(error: SetupError, machine: Machine) -> str:
    """The sentence, and what the worker and the API said last, unless it holds a log already."""
    if "The end of" in str(error):
        return str(error)
    ends = [(log.stem, tail(log, 5)) for log in sorted(machine.home.logs.glob("*.log")) if log.stem in ("api", "worker")]
    return str(error) + "".join(f"\nThe {name} said last:\n{words}" for name, words in ends if words)
