"""Workers that receive dispatches and run turns, one wait at a time; answers of models and tools; ends of processes."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from engine.enums import FinishReason, ToolStatus
from engine.errors import Malformed, ProviderDown, RateLimited, Rejected, ReplyLost, TimedOut, Unreachable
from engine.events import ModelReply, ToolCall, ToolOutcome, Usage
from tests.system.machine.base_machine import INDEXES, OPEN, BaseMachine
from tests.system.machine.worker_process import Wait, Worker
from tests.system.machine.world import TOOLS

PAUSES = st.sampled_from((None, None, None, "before", "after", "lost"))
NAMES = (*(str(tool["name"]) for tool in TOOLS), "no_such_tool")
REQUESTED_CALLS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(("good", "good", "good", "misfit", "garbage"))), min_size=1, max_size=3
)
ERRORS = {
    "rate limit": lambda: RateLimited("slow down", retry_after_s=2.0),
    "long rate limit": lambda: RateLimited("slow down", retry_after_s=30.0),
    "down": lambda: ProviderDown("503"),
    "unreachable": lambda: Unreachable("no connection"),
    "timed out": lambda: TimedOut("too late"),
    "reply lost": lambda: ReplyLost("cut"),
    "refused": lambda: Rejected("400"),
    "malformed": lambda: Malformed("<html>"),
    "a bug": lambda: Bug(),
}
OUTCOMES = ("succeeded", "succeeded", "failed", "unknown")


class Bug(Exception):
    """An error that no provider raises."""


def pending_waits(machine: Any, what: str) -> list[tuple[Worker, Wait]]:
    """Return the workers that wait for `what` and their waits, the oldest first."""
    return [(worker, wait) for worker in machine.world.workers for wait in worker.waiting_for(what)]


def waits_for(what: str) -> Any:
    """Return a precondition: a worker waits for `what`."""
    return precondition(lambda self: bool(pending_waits(self, what)))


class Workers(BaseMachine):
    """Any number of worker processes."""

    @precondition(lambda self: self.world.dispatches and len(self.world.workers) < 4)
    @rule(which=INDEXES, doubled=st.booleans(), pause=PAUSES)
    def receive_dispatch(self, which: int, doubled: bool, pause: str | None) -> None:
        turn_id = self.pick(self.world.dispatches, which)
        if not doubled:
            self.world.dispatches.remove(turn_id)
        self.world.start_worker(turn_id, pause)

    @precondition(lambda self: self.world.messages and len(self.world.workers) < 4)
    @rule(which=INDEXES)
    def receive_dispatch_of_any_turn(self, which: int) -> None:
        turns = self.world.rows("SELECT id FROM turns WHERE session_id = ANY (%(ids)s) ORDER BY session_id, opened_at_offset")
        if turns:
            self.world.start_worker(self.pick(turns, which)["id"])

    @waits_for("model")
    @rule(which=INDEXES, pause=PAUSES, streamed=st.booleans())
    def the_model_replies(self, which: int, pause: str | None, streamed: bool) -> None:
        worker, wait = self.pick(pending_waits(self, "model"), which)
        text = self.world.next("reply")
        if streamed and wait.on_delta:
            wait.on_delta(text)
        self.answer(worker, wait, ModelReply(text, (), FinishReason.STOP, "gpt-4o", Usage(10, 0, 0, 5, 0)), pause)

    @waits_for("model")
    @rule(which=INDEXES, pause=PAUSES, requested=REQUESTED_CALLS, words=st.booleans())
    def the_model_requests_tools(self, which: int, pause: str | None, requested: list[tuple[str, str]], words: bool) -> None:
        worker, wait = self.pick(pending_waits(self, "model"), which)
        calls = tuple(_call(self.world.next("call"), name, how) for name, how in requested)
        text = self.world.next("aside") if words else ""
        self.answer(worker, wait, ModelReply(text, calls, FinishReason.TOOL_CALLS, "gpt-4o", Usage(10, 0, 0, 5, 0)), pause)

    @waits_for("model")
    @rule(which=INDEXES)
    def the_model_streams_text(self, which: int) -> None:
        _, wait = self.pick(pending_waits(self, "model"), which)
        assert wait.on_delta is not None
        wait.on_delta(self.world.next("part"))

    @waits_for("model")
    @rule(which=INDEXES, pause=PAUSES, how=st.sampled_from((*ERRORS, "silence")))
    def the_model_fails(self, which: int, pause: str | None, how: str) -> None:
        worker, wait = self.pick(pending_waits(self, "model"), which)
        silence = ModelReply("", (), FinishReason.STOP, "gpt-4o", Usage(10))
        self.answer(worker, wait, silence if how == "silence" else ERRORS[how](), pause)

    @waits_for("tool")
    @rule(which=INDEXES, pause=PAUSES, how=st.sampled_from(OUTCOMES))
    def a_tool_answers(self, which: int, pause: str | None, how: str) -> None:
        worker, wait = self.pick(pending_waits(self, "tool"), which)
        name = wait.about.tool_call_id
        self.world.happened[name] = how == "succeeded" or (how == "unknown" and self.world.happened[name])
        outcome = ToolOutcome(ToolStatus.SUCCEEDED, {"of": name}) if how == "succeeded" else ToolOutcome(ToolStatus(how), error="No.")
        self.answer(worker, wait, outcome, pause)

    @waits_for("before a commit")
    @rule(which=INDEXES, pause=PAUSES)
    def a_commit_is_sent(self, which: int, pause: str | None) -> None:
        self.answer(*self.pick(pending_waits(self, "before a commit"), which), None, pause if pause != "before" else None)

    @waits_for("after a commit")
    @rule(which=INDEXES, pause=PAUSES)
    def a_commit_reply_arrives(self, which: int, pause: str | None) -> None:
        self.answer(*self.pick(pending_waits(self, "after a commit"), which), None, pause)

    @precondition(lambda self: self.world.workers)
    @rule(seconds=st.sampled_from((0.5, 3.0, 11.0, 130.0, 700.0)))
    def time_passes(self, seconds: float) -> None:
        """Move the workers' clock: they look for cancellations, renew leases, repeat lost statements and reach time limits."""
        self.environment.pass_time(seconds)

    @precondition(lambda self: self.world.workers)
    @rule(which=INDEXES)
    def a_worker_is_killed(self, which: int) -> None:
        self.run(self.pick(self.world.workers, which).kill())

    @precondition(lambda self: any(not worker.stopped for worker in self.world.workers))
    @rule(which=INDEXES)
    def a_worker_is_terminated(self, which: int) -> None:
        self.run(self.pick([worker for worker in self.world.workers if not worker.stopped], which).terminate())

    @precondition(lambda self: self.world.workers)
    @rule(which=INDEXES)
    def a_worker_is_stopped_or_continued(self, which: int) -> None:
        worker = self.pick(self.world.workers, which)
        if worker.stopped:
            self.run(worker.resume())
        else:
            worker.stopped = True

    @precondition(lambda self: self.world.workers)
    @rule(place=INDEXES)
    def a_lease_runs_out(self, place: int) -> None:
        self.world.rows(
            "UPDATE sessions SET lease_until = now() - interval '1 second' WHERE id = %(s)s AND lease_until IS NOT NULL",
            s=self.pick(self.world.session_ids, place),
        )

    def answer(self, worker: Worker, wait: Wait, answer: object, pause: str | None) -> None:
        """End a worker's wait."""
        self.run(worker.end(wait, answer, pause))

    def open_turns(self) -> int:
        """Return the number of open turns."""
        return int(self.world.rows(f"SELECT count(*) AS n FROM turns WHERE session_id = ANY (%(ids)s) AND status IN {OPEN}")[0]["n"])


def _call(name: str, tool: str, how: str) -> ToolCall:
    match how:
        case "good":
            return ToolCall(name, tool, {"n": 1}, '{"n":1}')
        case "misfit":
            return ToolCall(name, tool, {"n": "one"}, '{"n":"one"}')
        case _:
            return ToolCall(name, tool, None, '{"n":')
