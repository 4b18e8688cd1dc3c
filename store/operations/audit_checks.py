"""The invariants of every session (DESIGN section 8, 1 to 7), as SQL statements that return the violations.

They hold in every committed state, also while the database is in use: rows that one commit writes are read in one snapshot, and open work
violates an invariant only if it cannot come right any more. They read ids, states and counts and no messages, so turnline_maintenance may
run them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.enums import OPEN_TURNS, TurnStatus
from models.base import one_of
from models.turn import IN_FLIGHT, OPEN

SETTLED = one_of("status", [status for status in TurnStatus if status not in OPEN_TURNS])


@dataclass(frozen=True, slots=True)
class Question:
    """One check. `sql` returns (session_id, id) of each violation; `{e}`, `{t}`, `{s}` and so on limit the table of that alias to the
    sessions that are checked.

    `of` says what `id` is: a turn's id, a tool call's id, an event's offset, or null for the session itself.
    """

    name: str
    invariant: int
    of: str
    meaning: str
    sql: str

    def text(self, *, sessions: str | None, unclaimed_s: float, quarantine: bool = False) -> str:
        """Return the statement for the sessions of the SQL array `sessions`, or for all sessions that are not being deleted.

        `quarantine`: the column sessions.quarantined_at exists.
        """
        column = {"e": "e.session_id", "u": "u.session_id", "t": "t.session_id", "m": "m.session_id", "c": "c.session_id", "s": "s.id"}
        of = f"= ANY ({sessions})" if sessions else "NOT IN (SELECT id FROM sessions WHERE deleting_at IS NOT NULL)"
        scope: Mapping[str, str] = {key: f"{name} {of}" for key, name in column.items()}
        claimable = "s.mode = 'auto'" + (" AND s.quarantined_at IS NULL" if quarantine else "")
        return self.sql.format(**scope, claimable=claimable, unclaimed_s=float(unclaimed_s))


UNACCOUNTED = Question(
    "unaccounted messages",
    1,
    "offset",
    "A customer's message was accepted, and no turn has answered it, given a reason for not answering it, or is still open for it.",
    f"""
    SELECT e.session_id, e."offset"::text AS id FROM events e
    WHERE {{e}} AND e.kind = 'customer_message' AND e.turn_id IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM turns t WHERE t.session_id = e.session_id AND t.opened_at_offset <= e."offset"
        AND (t.{OPEN} OR (t.{SETTLED} AND t.read_through_offset >= e."offset")))""",
)
ANSWERED_TWICE = Question(
    "messages answered twice",
    1,
    "offset",
    "Two turns both read and answered this customer message.",
    """
    SELECT e.session_id, e."offset"::text AS id FROM events e JOIN turns t ON t.session_id = e.session_id
        AND e."offset" BETWEEN t.opened_at_offset AND t.read_through_offset
    WHERE {e} AND {t} AND e.kind = 'customer_message' GROUP BY e.session_id, e."offset" HAVING count(*) > 1""",
)
REPLIES = Question(
    "done turns without exactly one reply",
    1,
    "turn",
    "A turn is done, and the log has no reply from it, or more than one.",
    """
    SELECT t.session_id, t.id::text AS id FROM turns t
        LEFT JOIN events e ON e.session_id = t.session_id AND e.turn_id = t.id AND e.kind = 'agent_message' AND {e}
    WHERE {t} AND t.status = 'done' GROUP BY t.session_id, t.id HAVING count(e.id) <> 1""",
)
# The commit that ends a turn also writes its status update, so both have the same time.
NO_STATUS_UPDATE = Question(
    "ended turns without a status update",
    1,
    "turn",
    "A turn failed, died or was cancelled, and the commit that ended it wrote no status update for the customer's client.",
    """
    SELECT t.session_id, t.id::text AS id FROM turns t
        LEFT JOIN events e ON e.session_id = t.session_id AND e.turn_id = t.id AND e.kind = 'status_update'
            AND e.created_at = t.settled_at AND {e}
    WHERE {t} AND t.status IN ('failed', 'dead', 'cancelled') GROUP BY t.session_id, t.id HAVING count(e.id) = 0""",
)
ANSWERED_AND_DEAD = Question(
    "failed or dead turns with a reply",
    1,
    "turn",
    "A turn is failed or dead, and the log has a reply from it.",
    """
    SELECT DISTINCT t.session_id, t.id::text AS id FROM turns t
        JOIN events e ON e.session_id = t.session_id AND e.turn_id = t.id AND e.kind = 'agent_message' AND {e}
    WHERE {t} AND t.status IN ('failed', 'dead')""",
)
NO_REASON = Question(
    "failed or dead turns without a reason",
    1,
    "turn",
    "A turn is failed or dead, and its row has no error class.",
    "SELECT t.session_id, t.id::text AS id FROM turns t WHERE {t} AND t.status IN ('failed', 'dead') AND t.error_class IS NULL",
)
OFFSETS = Question(
    "offsets that are not 0, 1, 2 …",
    2,
    "session",
    "The session's log has a gap, or its next offset differs from the number of its events.",
    """
    SELECT s.id AS session_id, NULL AS id FROM sessions s LEFT JOIN events e ON e.session_id = s.id AND {e}
    WHERE {s} GROUP BY s.id, s.next_offset
    HAVING s.next_offset <> count(e.id) OR coalesce(max(e."offset"), -1) <> count(e.id) - 1 OR coalesce(min(e."offset"), 0) <> 0""",
)
EARLY_REPLIES = Question(
    "replies before the messages they answer",
    2,
    "turn",
    "A turn's reply precedes a message in the log that it claims to have read.",
    """
    SELECT t.session_id, t.id::text AS id FROM turns t
        JOIN events e ON e.session_id = t.session_id AND e.turn_id = t.id AND e.kind = 'agent_message' AND {e}
    WHERE {t} AND t.status = 'done' AND e."offset" <= t.read_through_offset""",
)
# A redriven turn may answer later than its neighbours. Its first end left a status update, which excludes it here.
ORDER = Question(
    "replies out of order",
    2,
    "turn",
    "A turn's reply precedes the reply of a turn that was opened earlier.",
    """
    SELECT session_id, id FROM (
        SELECT t.session_id, t.id::text AS id,
            e."offset" - lag(e."offset") OVER (PARTITION BY t.session_id ORDER BY t.opened_at_offset) AS step
        FROM turns t JOIN events e ON e.session_id = t.session_id AND e.turn_id = t.id AND e.kind = 'agent_message' AND {e}
        WHERE {t} AND t.status = 'done'
            AND t.id NOT IN (SELECT u.turn_id FROM events u WHERE {u} AND u.kind = 'status_update' AND u.turn_id IS NOT NULL)) x
    WHERE step < 0""",
)
FENCES = Question(
    "fences that decrease",
    3,
    "offset",
    "An event was written under an older claim than the event before it, by a worker that had lost its lease.",
    """
    SELECT session_id, "offset"::text AS id FROM (
        SELECT e.session_id, e."offset", e.fence - lag(e.fence) OVER (PARTITION BY e.session_id ORDER BY e."offset") AS step
        FROM events e WHERE {e}) x
    WHERE step < 0""",
)
FENCES_AHEAD = Question(
    "fences ahead of the session's",
    3,
    "session",
    "The log or a turn has a fence that is higher than the session's.",
    """
    SELECT s.id AS session_id, NULL AS id FROM sessions s
    WHERE {s} AND (EXISTS (SELECT 1 FROM events e WHERE e.session_id = s.id AND e.fence > s.lease_fence)
        OR EXISTS (SELECT 1 FROM turns t WHERE t.session_id = s.id AND t.fence > s.lease_fence))""",
)
KEYS = Question(
    "idempotency keys used twice",
    4,
    "tool call",
    "Two tool calls were sent with the same key, so the tool takes the second for a repetition of the first.",
    """
    SELECT session_id, tool_call_id AS id FROM (
        SELECT c.session_id, c.tool_call_id, count(*) OVER (PARTITION BY c.workspace_id, c.idempotency_key) AS n
        FROM tool_calls c WHERE {c}) x
    WHERE n > 1""",
)
UNSAFE_TWICE = Question(
    "unsafe tool calls sent more than once",
    4,
    "tool call",
    "A call of a tool that must not be repeated was sent more than once.",
    """
    SELECT c.session_id, c.tool_call_id AS id FROM tool_calls c JOIN tools l ON l.id = c.tool_id
    WHERE {c} AND c.attempts > 1 AND l.effect = 'unsafe' AND l.updated_at <= c.created_at""",
)
RESULTS = Question(
    "tool calls without exactly one result after them",
    5,
    "tool call",
    "A tool call in the log has two results, or a result before it, or none although its turn has ended.",
    f"""
    SELECT c.session_id, c.tool_call_id AS id FROM events c
        LEFT JOIN events e ON e.session_id = c.session_id AND e.tool_call_id = c.tool_call_id AND e.kind = 'tool_result' AND {{e}}
        LEFT JOIN turns t ON t.id = c.turn_id
    WHERE {{c}} AND c.kind = 'tool_call' GROUP BY c.session_id, c.tool_call_id, c."offset", t.status
    HAVING count(e.id) > 1 OR min(e."offset") <= c."offset" OR (count(e.id) = 0 AND (t.status IS NULL OR t.{SETTLED}))""",
)
STRAY_RESULTS = Question(
    "tool results without a call",
    5,
    "tool call",
    "The log has the result of a tool call that is not in it.",
    """
    SELECT e.session_id, e.tool_call_id AS id FROM events e
        LEFT JOIN events c ON c.session_id = e.session_id AND c.tool_call_id = e.tool_call_id AND c.kind = 'tool_call' AND {c}
    WHERE {e} AND e.kind = 'tool_result' AND c.id IS NULL""",
)
UNBOOKED = Question(
    "tool calls missing in the log or in their table",
    5,
    "tool call",
    "A tool call is in the log and has no row, or has a row and is not in the log.",
    """
    SELECT coalesce(e.session_id, c.session_id) AS session_id, coalesce(e.tool_call_id, c.tool_call_id) AS id
    FROM (SELECT e.session_id, e.tool_call_id FROM events e WHERE {e} AND e.kind = 'tool_call') e
        FULL JOIN (SELECT c.session_id, c.tool_call_id FROM tool_calls c WHERE {c}) c
            ON c.session_id = e.session_id AND c.tool_call_id = e.tool_call_id
    WHERE e.session_id IS NULL OR c.session_id IS NULL""",
)
COUNTERS = Question(
    "counters that differ from a recount",
    6,
    "session",
    "The session's counts of events and messages differ from its log.",
    """
    SELECT s.id AS session_id, NULL AS id FROM sessions s
        LEFT JOIN (SELECT e.session_id, count(*) AS n, count(*) FILTER (WHERE e.kind IN ('customer_message', 'agent_message')) AS m
                   FROM events e WHERE {e} GROUP BY 1) e ON e.session_id = s.id
    WHERE {s} AND (s.event_count, s.message_count) IS DISTINCT FROM (coalesce(e.n, 0)::integer, coalesce(e.m, 0)::integer)""",
)
COST = Question(
    "cost and tokens that differ from the ledger",
    6,
    "session",
    "The session's cost, tokens, or counts of unpriced and unknown calls differ from its model calls.",
    """
    SELECT s.id AS session_id, NULL AS id FROM sessions s
        LEFT JOIN (SELECT m.session_id, sum(m.input_tokens) AS i, sum(m.cached_input_tokens) AS c, sum(m.cache_write_tokens) AS w,
                       sum(m.output_tokens) AS o, sum(m.reasoning_tokens) AS r, coalesce(sum(m.cost_usd), 0) AS usd,
                       count(*) FILTER (WHERE m.state = 'settled' AND m.cost_usd IS NULL) AS unpriced,
                       count(*) FILTER (WHERE m.state = 'unknown') AS unknown
                   FROM model_calls m WHERE {m} GROUP BY 1) l ON l.session_id = s.id
    WHERE {s} AND (s.input_tokens, s.cached_input_tokens, s.cache_write_tokens, s.output_tokens, s.reasoning_tokens, s.tokens_used,
            s.cost_usd, s.unpriced_calls, s.unknown_calls)
        IS DISTINCT FROM (coalesce(l.i, 0), coalesce(l.c, 0), coalesce(l.w, 0), coalesce(l.o, 0), coalesce(l.r, 0),
            coalesce(l.i + l.o, 0), coalesce(l.usd, 0), coalesce(l.unpriced, 0)::integer, coalesce(l.unknown, 0))""",
)
UNCLAIMED = Question(
    "unclaimed turns",
    7,
    "turn",
    "A turn could run, and no worker has claimed it for a long time.",
    f"""
    SELECT t.session_id, t.id::text AS id FROM turns t JOIN sessions s ON s.id = t.session_id
    WHERE {{t}} AND {{claimable}} AND t.{IN_FLIGHT} AND (s.lease_until IS NULL OR s.lease_until < now())
        AND greatest(t.opened_at, t.claimed_at, t.not_before) < now() - make_interval(secs => {{unclaimed_s}})
        AND NOT EXISTS (SELECT 1 FROM turns f WHERE f.session_id = t.session_id AND f.{OPEN}
                        AND f.opened_at_offset < t.opened_at_offset)""",
)
LEASES = Question(
    "leases without a turn",
    7,
    "session",
    "The session's lease has expired without being released, and the session has no open turn.",
    f"""
    SELECT s.id AS session_id, NULL AS id FROM sessions s
    WHERE {{s}} AND s.lease_owner IS NOT NULL AND s.lease_until < now()
        AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.session_id = s.id AND t.{OPEN})""",
)
OPEN_CALLS = Question(
    "open calls of ended turns",
    7,
    "turn",
    "A turn has ended, and one of its model calls or tool calls is still open.",
    f"""
    SELECT t.session_id, t.id::text AS id FROM turns t
    WHERE {{t}} AND t.{SETTLED}
        AND (EXISTS (SELECT 1 FROM model_calls m WHERE m.turn_id = t.id AND m.state = 'reserved')
            OR EXISTS (SELECT 1 FROM tool_calls c WHERE c.turn_id = t.id AND c.state IN ('requested', 'awaiting_approval', 'running')))""",
)

QUESTIONS = (
    UNACCOUNTED,
    ANSWERED_TWICE,
    REPLIES,
    NO_STATUS_UPDATE,
    ANSWERED_AND_DEAD,
    NO_REASON,
    OFFSETS,
    EARLY_REPLIES,
    ORDER,
    FENCES,
    FENCES_AHEAD,
    KEYS,
    UNSAFE_TWICE,
    RESULTS,
    STRAY_RESULTS,
    UNBOOKED,
    COUNTERS,
    COST,
    UNCLAIMED,
    LEASES,
    OPEN_CALLS,
)
