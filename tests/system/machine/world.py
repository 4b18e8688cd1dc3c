"""One workspace at work, and what an onlooker knows of it: what was said, what was sent, what the model was shown."""

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
ASKED, FREE = {"approval": "required"}, {"approval": "never"}
TOOLS = (
    {"name": "pure", "effect": "pure"},
    {"name": "pure_asked", "effect": "pure", "configuration": ASKED},
    {"name": "idempotent", "effect": "idempotent"},
    {"name": "queryable", "effect": "queryable"},
    {"name": "unsafe", "effect": "unsafe"},
    {"name": "unsafe_free", "effect": "unsafe", "configuration": FREE},
)


@dataclass(frozen=True)
class SentMessage:
    """A customer's message that was accepted. `turn_id` is None where a person was to answer."""

    session_id: UUID
    offset: int
    text: str
    key: str | None
    turn_id: UUID | None
    event_id: UUID


class World:
    """A workspace with one agent and its sessions. `wrong` is what should not have happened, as sentences."""

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
        self.happened: dict[str, bool] = {}  # whether a queryable call did
        self.pinned: dict[UUID, tuple[str, tuple[ToolSpec, ...]]] = {}  # what a turn was first shown: instructions, tools
        self.requests = 0
        self._number = 0

    def rows(self, query: str, **values: object) -> list[dict[str, Any]]:
        """What the superuser reads of this workspace (`w`) and its sessions (`ids`), or changes."""
        return self.environment.rows(query, w=self.workspace_id, ids=self.session_ids, **values)

    def next(self, what: str) -> str:
        """A text that nobody has used: one of `what`, with a number."""
        self._number += 1
        return f"<{what} {self._number}>"

    def start_worker(self, turn_id: UUID, pause: str | None = None) -> Worker:
        """A worker that takes a ring for `turn_id`, at its first wait."""

        async def start() -> Worker:
            name = self.next("worker")
            made = Worker(self.environment, self, name, turn_id, max_attempts=self.max_attempts, history=self.history, limits=self.limits)
            made.pause = pause
            return made

        worker = self.environment.run(start())
        self.workers.append(worker)
        return worker

    def remove_ended_workers(self) -> None:
        """Forget workers that have come to an end; what ended one with a bug is wrong."""
        for worker in [worker for worker in self.workers if worker.ended]:
            self.workers.remove(worker)
            try:
                self.environment.run(worker.result())
            except Exception as error:
                self.wrong.append(f"{worker.name} broke with {error!r}")

    # What a worker's process finds around it

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
        self.wrong += [f"a request that no provider takes: {why}" for why in provider_valid(request)]
        (turn,) = self.rows("SELECT * FROM turns WHERE id = %(t)s", t=worker.turn_id)
        if turn["status"] == "running" and turn["fence"] == worker.fence:
            self.wrong += self._prompt_errors(worker, request, turn)
        shown = (request.messages[0].text, request.tools)
        if self.pinned.setdefault(worker.turn_id, shown) != shown:
            self.wrong.append("a turn goes on with another agent than it began with")

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
        self.happened[name] = self.sent[name] % 2 == 0  # as long as nobody has streamed
        if row["idempotency_key"] != key:
            self.wrong.append(f"{name} was sent with another key than its own")
        if tool.effect is Effect.UNSAFE and self.sent[name] > 1:
            self.wrong.append(f"the unsafe {name} was sent again")
        if tool.approval:
            approved = hash_to_approve(worker.session_id or self.workspace_id, tool.id, name, call.tool_name, call.arguments)
            if (row["status"], row["arguments_hash"]) != ("approved", approved) or row["used_at"] is None:
                self.wrong.append(f"{name} was sent, and what was approved is {row}, not {approved}")
        return None

    # What the model must be shown

    def _prompt_errors(self, worker: Worker, request: ModelRequest, turn: Mapping[str, Any]) -> list[str]:
        """What a request lacks of the log, or should not have."""
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
        wrong = [f"{text} was dropped, or is another turn's, and the model is shown it" for text in must_not if text in shown]
        wrong += [f"the model is shown {text} {shown.count(text)} times" for text in must if shown.count(text) > 1]
        if self.history > len(log):
            wrong += [f"the model is not shown {text}" for text in must if text not in shown]
        said = [text for text in (message.text for message in request.messages if message.role is Role.USER) if text in must]
        if said != [text for text in must if text in said]:
            wrong.append(f"the customer's messages stand out of order: {said}")
        return wrong


def _texts(request: ModelRequest) -> list[str]:
    """What can be row apart in a request: texts, and the ids of tool calls."""
    return [
        word
        for message in request.messages
        if message.role in (Role.USER, Role.ASSISTANT)
        for word in (message.text, *(call.tool_call_id for call in message.tool_calls))
    ]
