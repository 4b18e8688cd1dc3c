"""One active workspace, and a record of it: messages, requests to tools, and the model's inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from engine.enums import Effect, Role, ToolStatus
from engine.events import ToolCall, ToolOutcome
from engine.model.request import ModelRequest
from engine.tools.json_schema import validate
from engine.tools.spec import ToolSpec
from engine.turn.context import Limits
from engine.turn.tool_intents import hash_to_approve
from store.conversations.turns import LEASE_LOST
from tests.support.factories import Tenant, tenant
from tests.support.valid_prompt import provider_valid
from tests.system.machine.environment import Environment
from tests.system.machine.worker_process import Worker

PARAMETERS = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
APPROVAL_REQUIRED, NO_APPROVAL = {"approval": "required"}, {"approval": "never"}
TOOLS = (
    {"name": "pure", "effect": "pure"},
    {"name": "pure_asked", "effect": "pure", "configuration": APPROVAL_REQUIRED},
    {"name": "idempotent", "effect": "idempotent"},
    {"name": "queryable", "effect": "queryable"},
    {"name": "unsafe", "effect": "unsafe"},
    {"name": "unsafe_free", "effect": "unsafe", "configuration": NO_APPROVAL},
)


@dataclass(frozen=True)
class SentMessage:
    """A customer's message that was accepted. `turn_id` is None if a person was to answer."""

    session_id: UUID
    offset: int
    text: str
    key: str | None
    turn_id: UUID | None
    event_id: UUID


class World:
    """A workspace with one agent and its sessions. `wrong` lists violations, as sentences."""

    def __init__(
        self, environment: Environment, *, sessions: int, in_flight_limit: int, max_attempts: int, history: int, **agent: Any
    ) -> None:
        self.environment = environment
        self.in_flight_limit, self.max_attempts, self.history = in_flight_limit, max_attempts, history
        self.limits = Limits(model_calls=5, tool_calls=4, steps=12)
        made: Tenant = environment.run(
            tenant(environment.database, sessions=sessions, tools=tuple(t | {"parameters": PARAMETERS} for t in TOOLS), **agent)
        )
        self.workspace_id, self.agent_id, self.session_ids = made.workspace_id, made.agent_id, made.session_ids
        self.tools: dict[str, UUID] = {row["name"]: row["id"] for row in self.rows("SELECT id, name FROM tools WHERE workspace_id = %(w)s")}
        self.wrong: list[str] = []
        self.dispatches: list[UUID] = []
        self.workers: list[Worker] = []
        self.messages: list[SentMessage] = []
        self.sent: Counter[str] = Counter()  # requests that reached a tool, by tool call
        self.happened: dict[str, bool] = {}  # for each queryable call, whether it took effect
        self.pinned: dict[UUID, tuple[str, tuple[ToolSpec, ...]]] = {}  # instructions and tools in a turn's first request
        self.requests = 0
        self._number = 0

    def rows(self, query: str, **values: object) -> list[dict[str, Any]]:
        """Run a statement as the superuser, with the parameters `w` (this workspace) and `ids` (its sessions); return its rows."""
        return self.environment.rows(query, w=self.workspace_id, ids=self.session_ids, **values)

    def next(self, what: str) -> str:
        """Return a unique text: `what` with a number."""
        self._number += 1
        return f"<{what} {self._number}>"

    def start_worker(self, turn_id: UUID, pause: str | None = None) -> Worker:
        """Start a worker that receives a dispatch of `turn_id`, and return it at its first wait."""

        async def start() -> Worker:
            name = self.next("worker")
            made = Worker(self.environment, self, name, turn_id, max_attempts=self.max_attempts, history=self.history, limits=self.limits)
            made.pause = pause
            return made

        worker = self.environment.run(start())
        self.workers.append(worker)
        return worker

    def remove_ended_workers(self) -> None:
        """Remove workers that have ended; an unexpected exception is a violation."""
        for worker in [worker for worker in self.workers if worker.ended]:
            self.workers.remove(worker)
            try:
                self.environment.run(worker.result())
            except Exception as error:
                self.wrong.append(f"{worker.name} broke with {error!r}")

    # The surroundings of a worker process (WorkerHost)

    def dispatch(self, turn_id: UUID) -> None:
        self.dispatches.append(turn_id)

    def claimed(self, worker: Worker) -> None:
        (row,) = self.rows("SELECT next_offset FROM sessions WHERE id = %(s)s", s=worker.session_id)
        worker.claimed_at_offset = row["next_offset"]

    def wrote(self, worker: Worker, row: Mapping[str, Any]) -> None:
        (session,) = self.rows("SELECT lease_fence FROM sessions WHERE id = %(s)s", s=worker.session_id)
        if session["lease_fence"] != worker.fence:
            self.wrong.append(f"{worker.name} wrote under fence {worker.fence}, and the session's is {session['lease_fence']}")

    def refused(self, worker: Worker, error: psycopg.Error) -> None:
        if error.sqlstate != LEASE_LOST:
            self.wrong.append(f"the database refused {worker.name}: {error!r}")

    def requested(self, worker: Worker, request: ModelRequest) -> None:
        self.requests += 1
        self.wrong += [f"a request that no provider accepts: {why}" for why in provider_valid(request)]
        (turn,) = self.rows("SELECT * FROM turns WHERE id = %(t)s", t=worker.turn_id)
        if turn["status"] == "running" and turn["fence"] == worker.fence:
            self.wrong += self._prompt_errors(worker, request, turn)
        shown = (request.messages[0].text, request.tools)
        if self.pinned.setdefault(worker.turn_id, shown) != shown:
            self.wrong.append("the agent changed during a turn")

    def called(self, worker: Worker, tool: ToolSpec | None, call: ToolCall, key: str, begun: bool) -> ToolOutcome | None:
        if call.arguments is None or tool is None or validate(tool.parameters, call.arguments):
            return ToolOutcome(ToolStatus.FAILED, error="It cannot be sent.", requests=0)
        name = call.tool_call_id
        if begun and tool.effect is Effect.QUERYABLE and self.happened.get(name, False):
            return ToolOutcome(ToolStatus.SUCCEEDED, {"asked": True}, requests=0)
        (row,) = self.rows(
            "SELECT c.state, c.idempotency_key, p.status, p.used_at, p.arguments_hash FROM tool_calls c"
            " LEFT JOIN approvals p USING (session_id, tool_call_id) WHERE c.tool_call_id = %(c)s AND c.session_id = ANY (%(ids)s)",
            c=name,
        )
        self.sent[name] += 1
        self.happened[name] = self.sent[name] % 2 == 0  # every second request takes effect
        if row["idempotency_key"] != key:
            self.wrong.append(f"{name} was sent with another key than its own")
        if tool.effect is Effect.UNSAFE and self.sent[name] > 1:
            self.wrong.append(f"the unsafe {name} was sent again")
        if tool.approval:
            approved = hash_to_approve(worker.session_id or self.workspace_id, tool.id, name, call.tool_name, call.arguments)
            if (row["status"], row["arguments_hash"]) != ("approved", approved) or row["used_at"] is None:
                self.wrong.append(f"{name} was sent, and what was approved is {row}, not {approved}")
        return None

    # The model's input

    def _prompt_errors(self, worker: Worker, request: ModelRequest, turn: Mapping[str, Any]) -> list[str]:
        """Return what is missing in a request, or should not be in it, as sentences."""
        log = self.rows(
            'SELECT "offset", kind, content, turn_id, metadata FROM events WHERE session_id = %(s)s ORDER BY 1', s=worker.session_id
        )
        dropped: dict[UUID, int] = {}
        for event in log:
            content = event["content"]
            if content.get("rolled_back") or (content.get("status") == "redriven" and content.get("from_scratch")):
                dropped[event["turn_id"]] = event["offset"]
        read = -1 if turn["read_through_offset"] is None else turn["read_through_offset"]
        must: list[str] = []
        must_not: list[str] = []
        for event in log:
            content, gone = event["content"], event["offset"] < dropped.get(event["turn_id"], 0)
            known = event["offset"] < worker.claimed_at_offset
            match event["kind"]:
                case "customer_message":
                    (must if event["offset"] <= read else must_not).append(content["text"])
                case "agent_message" if known or gone:
                    (must_not if gone else must).append(content["text"])
                case "tool_call":
                    (must_not if gone else must).append(content["tool_call_id"])
                case "status_update" if content.get("partial_text") and known:
                    (must_not if gone or content.get("rolled_back") else must).append(content["partial_text"])
        shown = "\n".join(_texts(request))
        wrong = [f"{text} was dropped, or is another turn's, and is in the model's input" for text in must_not if text in shown]
        wrong += [f"the model is shown {text} {shown.count(text)} times" for text in must if shown.count(text) > 1]
        if self.history > len(log):
            wrong += [f"the model is not shown {text}" for text in must if text not in shown]
        shown_texts = [text for text in (message.text for message in request.messages if message.role is Role.USER) if text in must]
        if shown_texts != [text for text in must if text in shown_texts]:
            wrong.append(f"the customer's messages are out of order: {shown_texts}")
        return wrong


def _texts(request: ModelRequest) -> list[str]:
    """Return the distinguishable parts of a request: texts, and the ids of tool calls."""
    return [
        word
        for message in request.messages
        if message.role in (Role.USER, Role.ASSISTANT)
        for word in (message.text, *(call.tool_call_id for call in message.tool_calls))
    ]
