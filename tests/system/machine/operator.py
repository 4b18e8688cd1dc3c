"""The operator: stops turns, takes sessions over, answers in person, decides approvals, mends, and changes the agent and the budgets."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from psycopg.types.json import Jsonb

from engine.turn.tool_intents import hash_to_approve
from tests.system.machine.base_machine import PLACES, Play

PENDING = """
    SELECT *, expires_at > now() AS in_time FROM approvals WHERE session_id = ANY (%(ids)s) AND status = 'pending'
    ORDER BY session_id, tool_call_id"""
TURNS = "SELECT * FROM turns WHERE session_id = ANY (%(ids)s) ORDER BY session_id, opened_at_offset"


class Operator(Play):
    """One person with every lever."""

    @precondition(lambda self: self.meddles)
    @rule(place=PLACES, all_of_them=st.booleans())
    def cancel(self, place: int, all_of_them: bool) -> None:
        turns = self.house.rows(TURNS)
        if all_of_them:
            session_id = self.pick(self.house.session_ids, place)
            self.pull("SELECT * FROM cancel_turns($1, $2, NULL, $3)", session_id, "Olga")
        elif turns:
            self.pull("SELECT * FROM cancel_turns($1, NULL, $2, $3)", self.pick(turns, place)["id"], "Olga")

    @precondition(lambda self: self.meddles)
    @rule(place=PLACES, mode=st.sampled_from(("auto", "auto", "manual", "paused")))
    def set_mode(self, place: int, mode: str) -> None:
        self.pull("SELECT * FROM set_mode($1, $2, $3, $4, $5)", self.pick(self.house.session_ids, place), mode, "Olga", self.house.window)

    @rule(place=PLACES, as_agent=st.booleans())
    def say_in_person(self, place: int, as_agent: bool) -> None:
        source = "human_agent_on_behalf_of_ai_agent" if as_agent else "human_agent"
        text = {"text": self.house.next("person")}
        session_id = self.pick(self.house.session_ids, place)
        told = self.pull("SELECT * FROM reply_as_person($1, $2, $3, $4, '{}', NULL)", session_id, source, Jsonb(text))
        assert told["o_outcome"] == "accepted"

    @precondition(lambda self: self.house.rows(PENDING))
    @rule(which=PLACES, how=st.sampled_from(("approved", "approved", "denied", "edited")))
    def decide(self, which: int, how: str) -> None:
        self.decide_one(self.pick(self.house.rows(PENDING), which), how)

    @precondition(lambda self: self.house.rows(PENDING))
    @rule(which=PLACES)
    def an_approval_expires(self, which: int) -> None:
        """Its time has come: with it, the time that its turn waits for."""
        approval = self.pick(self.house.rows(PENDING), which)
        self.house.rows("UPDATE approvals SET expires_at = now() - interval '1 second' WHERE id = %(id)s", id=approval["id"])
        self.house.rows(
            "UPDATE turns SET not_before = least(not_before, now() - interval '1 second') WHERE id = %(id)s AND status = 'waiting'",
            id=approval["turn_id"],
        )

    @precondition(lambda self: self.house.rows(TURNS))
    @rule(which=PLACES, scratch=st.booleans())
    def redrive(self, which: int, scratch: bool) -> None:
        turn_id = self.pick(self.house.rows(TURNS), which)["id"]
        told = self.pull("SELECT * FROM redrive_turn($1, $2, $3, $4, $5)", turn_id, scratch, "Olga", self.house.window)
        if told["o_outcome"] == "redriven" and scratch:
            self.house.pinned.pop(turn_id, None)

    @rule(place=PLACES)
    def release(self, place: int) -> None:
        self.pull("SELECT * FROM release_session($1, $2, $3, $4)", self.pick(self.house.session_ids, place), "Olga", self.house.window)

    @rule(enabled=st.booleans())
    def change_the_agent(self, enabled: bool) -> None:
        """Its prompt and whether it has one of its tools; a turn under way must not notice."""
        self.house.rows(
            "UPDATE agents SET version = version + 1, system_prompt = %(p)s WHERE id = %(a)s",
            p=self.house.next("prompt"),
            a=self.house.agent_id,
        )
        self.house.rows(
            "UPDATE agent_tools SET enabled = %(e)s WHERE agent_id = %(a)s AND tool_id = %(t)s",
            e=enabled,
            a=self.house.agent_id,
            t=self.house.tools["idempotent"],
        )

    @precondition(lambda self: self.meddles)
    @rule(
        place=PLACES,
        scope=st.sampled_from(("workspace", "agent", "session")),
        unit=st.sampled_from(("usd", "tokens")),
        cap=st.sampled_from((0, 3000, 100_000)),
    )
    def set_a_budget(self, place: int, scope: str, unit: str, cap: int) -> None:
        session_id = self.pick(self.house.session_ids, place)
        ids: dict[str, UUID] = {"workspace": self.house.workspace_id, "agent": self.house.agent_id, "session": session_id}
        self.house.rows(
            "INSERT INTO budgets (id, workspace_id, scope, scope_id, unit, period, cap)"
            " VALUES (gen_random_uuid(), %(w)s, %(scope)s, %(of)s, %(unit)s, 'total', %(cap)s) ON CONFLICT DO NOTHING",
            scope=scope,
            of=ids[scope],
            unit=unit,
            cap=cap if unit == "tokens" else cap / 100_000,
        )

    @precondition(lambda self: self.house.rows("SELECT 1 FROM budgets WHERE workspace_id = %(w)s"))
    @rule()
    def remove_the_budgets(self) -> None:
        self.house.rows("DELETE FROM budgets WHERE workspace_id = %(w)s")

    def decide_one(self, approval: dict[str, Any], how: str) -> None:
        """Approve, deny or edit a pending approval."""
        edited = {"n": 99} if how == "edited" else None
        hashed = approval["session_id"], approval["tool_id"], approval["tool_call_id"], approval["tool_name"]
        told = self.pull(
            "SELECT * FROM decide_approval($1, $2, $3, $4, $5, $6, $7)",
            approval["id"],
            "approved" if how == "edited" else how,
            "Olga",
            "No." if how == "denied" else None,
            Jsonb(edited) if edited else None,
            hash_to_approve(*hashed, edited) if edited else None,
        )
        assert told["o_outcome"] in ("decided", "expired"), told

    def pull(self, statement: str, *parameters: object) -> dict[str, Any]:
        """Pull a lever of the database, and ring whom it says."""
        told = self.run(self.stage.database.call(statement, self.house.workspace_id, *parameters))
        if told.get("o_dispatch") is not None:
            self.house.dispatch(told["o_dispatch"])
        return told
