"""What holds after every move, and what holds once everything has come to its end."""

from __future__ import annotations

from decimal import Decimal
from functools import cache
from typing import Any

from store.operations.audit_checks import QUESTIONS, SETTLED, UNCLAIMED
from tests.system.machine.world import World

TRANSIENT = ("RateLimited", "ProviderDown", "Unreachable", "TimedOut", "ReplyLost")
FATAL = ("Rejected", "Malformed", "BudgetSpent", "EmptyReply", "AttemptsSpent")
STOPPED = ("Cancelled", "Interrupted", "RolledBack", "TakenOver")
KNOWN_ERRORS = (*TRANSIENT, *FATAL, *STOPPED, "Bug")

# Each returns (session_id, id) of what is wrong; `{mine}` limits it to the sessions of the example.
ALWAYS = {
    "several live turns": """
        SELECT session_id, NULL AS id FROM turns WHERE {mine} AND status IN ('running', 'waiting') GROUP BY 1 HAVING count(*) > 1""",
    "done in spite of a stop": """
        SELECT session_id, id::text FROM turns WHERE {mine} AND status = 'done' AND cancel_requested_at IS NOT NULL""",
    "an agent's reply while a person answers": """
        SELECT session_id, "offset"::text AS id FROM events e
        WHERE {mine} AND kind = 'agent_message' AND source = 'ai_agent' AND 'manual' = (
            SELECT m.content->>'mode' FROM events m WHERE m.session_id = e.session_id AND m.kind = 'status_update'
                AND m.content->>'status' = 'mode' AND m."offset" < e."offset" ORDER BY m."offset" DESC LIMIT 1)""",
    "an error that is a bug of ours": f"""
        SELECT session_id, error_class || ' ' || coalesce(error_detail, '') AS id FROM turns
        WHERE {{mine}} AND error_class NOT IN ({", ".join(f"'{name}'" for name in KNOWN_ERRORS)})""",
    "a pending approval of a turn that has ended": f"""
        SELECT p.session_id, p.tool_call_id AS id FROM approvals p JOIN turns t ON t.id = p.turn_id
        WHERE {{p_mine}} AND p.status = 'pending' AND t.{SETTLED}""",
    "an approval that was used and not given": """
        SELECT session_id, tool_call_id AS id FROM approvals WHERE {mine} AND used_at IS NOT NULL AND status <> 'approved'""",
    "a call begun without its approval": """
        SELECT c.session_id, c.tool_call_id AS id FROM tool_calls c JOIN approvals p USING (session_id, tool_call_id)
        WHERE {p_mine} AND (c.state IN ('running', 'succeeded') OR c.attempts > 0) AND p.used_at IS NULL""",
    "a turn that waits for nobody": """
        SELECT t.session_id, t.id::text FROM turns t WHERE {mine} AND t.status = 'waiting' AND NOT EXISTS (
            SELECT 1 FROM tool_calls c WHERE c.turn_id = t.id AND c.state = 'awaiting_approval')""",
    "a call under way in a turn that is over": f"""
        SELECT c.session_id, c.tool_call_id AS id FROM tool_calls c JOIN turns t ON t.id = c.turn_id
        WHERE {{c_mine}} AND c.state IN ('requested', 'awaiting_approval', 'running') AND t.{SETTLED}""",
    "a lease of a turn that is not running": """
        SELECT s.id AS session_id, NULL AS id FROM sessions s WHERE s.id = ANY (%(ids)s) AND s.lease_owner IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.session_id = s.id AND t.status = 'running')""",
}

AT_THE_END = {
    "messages that no turn ended with": f"""
        SELECT e.session_id, e."offset"::text AS id FROM events e LEFT JOIN LATERAL (
            SELECT t.* FROM turns t WHERE t.session_id = e.session_id AND t.opened_at_offset <= e."offset"
            ORDER BY t.opened_at_offset DESC LIMIT 1) t ON true
        WHERE {{e_mine}} AND e.kind = 'customer_message' AND e.turn_id IS NOT NULL
            AND (t.id IS NULL OR NOT t.{SETTLED} OR coalesce(t.read_through_offset, -1) < e."offset"
                OR (t.status <> 'done' AND t.error_class IS NULL))""",
    "turns left open": "SELECT session_id, id::text FROM turns WHERE {mine} AND status NOT IN ('done', 'failed', 'dead', 'cancelled')",
    "leases left": "SELECT id AS session_id, lease_owner AS id FROM sessions WHERE id = ANY (%(ids)s) AND lease_owner IS NOT NULL",
    "model calls left open": "SELECT session_id, turn_id::text AS id FROM model_calls WHERE {mine} AND state = 'reserved'",
    "tool calls left open": """
        SELECT session_id, tool_call_id AS id FROM tool_calls WHERE {mine} AND state IN ('requested', 'awaiting_approval', 'running')""",
    "turns that ended otherwise without one word of it since they were last redriven": """
        SELECT t.session_id, t.id::text FROM turns t LEFT JOIN events e ON e.turn_id = t.id AND e.kind = 'status_update'
            AND e."offset" > coalesce((SELECT max(r."offset") FROM events r
                                       WHERE r.turn_id = t.id AND r.content->>'status' = 'redriven'), -1)
        WHERE {t_mine} AND t.status IN ('failed', 'dead', 'cancelled') GROUP BY t.session_id, t.id
        HAVING count(*) FILTER (WHERE e.content->>'status' IN ('failed', 'dead', 'cancelled')) <> 1""",
    "tool calls without exactly one result": """
        SELECT c.session_id, c.tool_call_id AS id FROM tool_calls c LEFT JOIN events e ON e.session_id = c.session_id
            AND e.tool_call_id = c.tool_call_id AND e.kind = 'tool_result'
        WHERE {c_mine} GROUP BY 1, 2 HAVING count(e.id) <> 1""",
    "holds that are not of calls whose outcome is unknown": """
        SELECT m.session_id, m.turn_id::text AS id FROM budget_holds h JOIN model_calls m USING (turn_id, step, attempt)
        WHERE m.session_id = ANY (%(ids)s) AND m.state <> 'unknown'""",
}


def violations(world: World, *, ended: bool = False) -> dict[str, list[Any]]:
    """What is wrong in the database, by name, with the ids; `ended`: nothing is under way any more."""
    found: dict[str, list[Any]] = {}
    for row in world.rows(_statement(ended)):
        found.setdefault(row["name"], []).append(row["id"])
    return found


@cache
def _statement(ended: bool) -> str:
    asked = [(one.name, one.text(sessions="%(ids)s::uuid[]", unclaimed_s=0)) for one in QUESTIONS if ended or one is not UNCLAIMED]
    asked += [(name, _limited(query)) for name, query in (ALWAYS | AT_THE_END if ended else ALWAYS).items()]
    return " UNION ALL ".join(
        f"(SELECT '{name.replace(chr(39), chr(39) * 2)}' AS name, x.session_id, x.id FROM ({query}) x)" for name, query in asked
    )


def _limited(query: str) -> str:
    columns = {"mine": "session_id"} | {f"{table}_mine": f"{table}.session_id" for table in "pcet"}
    return query.format(**{name: f"{column} = ANY (%(ids)s::uuid[])" for name, column in columns.items()})


class BudgetChecker:
    """What budgets should have spent and should hold, by watching holds come and go."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.spent: dict[Any, Decimal] = {}
        self._held: dict[tuple[Any, ...], Decimal] = {}

    def look(self) -> None:
        """Account for what has changed since the last look, and compare."""
        held = {
            (row["turn_id"], row["step"], row["attempt"], row["budget_id"]): row["amount"]
            for row in self.world.rows("SELECT * FROM budget_holds WHERE workspace_id = %(w)s")
        }
        budgets = self.world.rows("SELECT * FROM budgets WHERE workspace_id = %(w)s")
        units = {row["id"]: row["unit"] for row in budgets}
        for key in self._held.keys() - held.keys():
            turn_id, step, attempt, budget_id = key
            (call,) = self.world.rows(
                "SELECT * FROM model_calls WHERE turn_id = %(t)s AND step = %(step)s AND attempt = %(a)s", t=turn_id, step=step, a=attempt
            )
            if budget_id not in units:
                continue
            if call["state"] == "unknown":
                self.world.wrong.append("a call that may have been billed holds nothing any more")
            elif call["state"] == "settled":
                tokens = Decimal(call["input_tokens"] + call["output_tokens"])
                spent = tokens if units[budget_id] == "tokens" else call["cost_usd"] or self._held[key]
                self.spent[budget_id] = self.spent.get(budget_id, Decimal(0)) + spent
        self._held = held
        for row in budgets:
            holds = sum((amount for key, amount in held.items() if key[3] == row["id"]), Decimal(0))
            expected = (self.spent.get(row["id"], Decimal(0)), holds)
            if (row["spent"], row["reserved"]) != expected:
                self.world.wrong.append(f"a budget has {row['spent']} spent and {row['reserved']} reserved, not {expected}")
            if row["spent"] + row["reserved"] > row["cap"]:
                self.world.wrong.append(f"a budget of {row['cap']} has {row['spent']} spent and {row['reserved']} reserved")
