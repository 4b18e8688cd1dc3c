"""The operator: cancels turns, takes sessions over, replies, decides approvals, redrives, and changes the agent and the budgets."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from psycopg.types.json import Jsonb

from engine.turn.tool_intents import hash_to_approve
from tests.system.machine.base_machine import INDEXES, BaseMachine

PENDING = """
    SELECT *, expires_at > now() AS in_time FROM approvals WHERE session_id = ANY (%(ids)s) AND status = 'pending'
    ORDER BY session_id, tool_call_id"""
TURNS = "SELECT * FROM turns WHERE session_id = ANY (%(ids)s) ORDER BY session_id, opened_at_offset"


class Operator(BaseMachine):
    """One person who uses every control of a session."""

    @precondition(lambda self: self.operator_interferes)
    @rule(place=INDEXES, all_of_them=st.booleans())
    def cancel(self, place: int, all_of_them: bool) -> None:
        turns = self.world.rows(TURNS)
        if all_of_them:
            session_id = self.pick(self.world.session_ids, place)
            self.call_and_dispatch("SELECT * FROM cancel_turns($1, $2, NULL, $3)", session_id, "Olga")
        elif turns:
            self.call_and_dispatch("SELECT * FROM cancel_turns($1, NULL, $2, $3)", self.pick(turns, place)["id"], "Olga")

    @precondition(lambda self: self.operator_interferes)
    @rule(place=INDEXES, mode=st.sampled_from(("auto", "auto", "manual", "paused")))
    def set_mode(self, place: int, mode: str) -> None:
        self.call_and_dispatch(
            "SELECT * FROM set_mode($1, $2, $3, $4, $5)", self.pick(self.world.session_ids, place), mode, "Olga", self.world.in_flight_limit
        )

    @rule(place=INDEXES, as_agent=st.booleans())
    def reply_as_person(self, place: int, as_agent: bool) -> None:
        source = "human_agent_on_behalf_of_ai_agent" if as_agent else "human_agent"
        text = {"text": self.world.next("person")}
        session_id = self.pick(self.world.session_ids, place)
        row = self.call_and_dispatch("SELECT * FROM reply_as_person($1, $2, $3, $4, '{}', NULL)", session_id, source, Jsonb(text))
        assert row["o_outcome"] == "accepted"

    @precondition(lambda self: self.world.rows(PENDING))
    @rule(which=INDEXES, how=st.sampled_from(("approved", "approved", "denied", "edited")))
    def decide(self, which: int, how: str) -> None:
        self.decide_one(self.pick(self.world.rows(PENDING), which), how)

    @precondition(lambda self: self.world.rows(PENDING))
    @rule(which=INDEXES)
    def an_approval_expires(self, which: int) -> None:
        """Let an approval's time run out, and with it the time that its turn waits for."""
        approval = self.pick(self.world.rows(PENDING), which)
        self.world.rows("UPDATE approvals SET expires_at = now() - interval '1 second' WHERE id = %(id)s", id=approval["id"])
        self.world.rows(
            "UPDATE turns SET not_before = least(not_before, now() - interval '1 second') WHERE id = %(id)s AND status = 'waiting'",
            id=approval["turn_id"],
        )

    @precondition(lambda self: self.world.rows(TURNS))
    @rule(which=INDEXES, scratch=st.booleans())
    def redrive(self, which: int, scratch: bool) -> None:
        turn_id = self.pick(self.world.rows(TURNS), which)["id"]
        row = self.call_and_dispatch("SELECT * FROM redrive_turn($1, $2, $3, $4, $5)", turn_id, scratch, "Olga", self.world.in_flight_limit)
        if row["o_outcome"] == "redriven" and scratch:
            self.world.pinned.pop(turn_id, None)

    @rule(place=INDEXES)
    def release(self, place: int) -> None:
        self.call_and_dispatch(
            "SELECT * FROM release_session($1, $2, $3, $4)", self.pick(self.world.session_ids, place), "Olga", self.world.in_flight_limit
        )

    @rule(enabled=st.booleans())
    def change_the_agent(self, enabled: bool) -> None:
        """Change its prompt and remove or add one of its tools; a running turn must not be affected."""
        self.world.rows(
            "UPDATE agents SET version = version + 1, system_prompt = %(p)s WHERE id = %(a)s",
            p=self.world.next("prompt"),
            a=self.world.agent_id,
        )
        self.world.rows(
            "UPDATE agent_tools SET enabled = %(e)s WHERE agent_id = %(a)s AND tool_id = %(t)s",
            e=enabled,
            a=self.world.agent_id,
            t=self.world.tools["idempotent"],
        )

    @precondition(lambda self: self.operator_interferes)
    @rule(
        place=INDEXES,
        scope=st.sampled_from(("workspace", "agent", "session")),
        unit=st.sampled_from(("usd", "tokens")),
        cap=st.sampled_from((0, 3000, 100_000)),
    )
    def set_a_budget(self, place: int, scope: str, unit: str, cap: int) -> None:
        session_id = self.pick(self.world.session_ids, place)
        ids: dict[str, UUID] = {"workspace": self.world.workspace_id, "agent": self.world.agent_id, "session": session_id}
        self.world.rows(
            "INSERT INTO budgets (id, workspace_id, scope, scope_id, unit, period, cap)"
            " VALUES (gen_random_uuid(), %(w)s, %(scope)s, %(of)s, %(unit)s, 'total', %(cap)s) ON CONFLICT DO NOTHING",
            scope=scope,
            of=ids[scope],
            unit=unit,
            cap=cap if unit == "tokens" else cap / 100_000,
        )

    @precondition(lambda self: self.world.rows("SELECT 1 FROM budgets WHERE workspace_id = %(w)s"))
    @rule()
    def remove_the_budgets(self) -> None:
        self.world.rows("DELETE FROM budgets WHERE workspace_id = %(w)s")

    def decide_one(self, approval: dict[str, Any], how: str) -> None:
        """Approve, deny or edit a pending approval."""
        edited = {"n": 99} if how == "edited" else None
        hashed = approval["session_id"], approval["tool_id"], approval["tool_call_id"], approval["tool_name"]
        row = self.call_and_dispatch(
            "SELECT * FROM decide_approval($1, $2, $3, $4, $5, $6, $7)",
            approval["id"],
            "approved" if how == "edited" else how,
            "Olga",
            "No." if how == "denied" else None,
            Jsonb(edited) if edited else None,
            hash_to_approve(*hashed, edited) if edited else None,
        )
        assert row["o_outcome"] in ("decided", "expired"), row

    def call_and_dispatch(self, statement: str, *parameters: object) -> dict[str, Any]:
        """Call a function of the database, and dispatch the turns that it returns."""
        row = self.run(self.environment.database.call(statement, self.world.workspace_id, *parameters))
        if row.get("o_dispatch") is not None:
            self.world.dispatch(row["o_dispatch"])
        return row
