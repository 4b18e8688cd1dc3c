"""A case for every job: real data that gives it work, the expected result, and a point in its middle."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg

from store.conversations import intake, session_control
from store.database import Database
from store.encryption import SecretBox
from tests.support.engine_runs import REFUND, run_turn, tool_call
from tests.support.factories import Tenant, tenant
from tests.support.fakes import Script, calls
from tests.support.past_sessions import filled, left
from tests.support.recount import quarter, recount, rolled_up

OLD_KEY, NEW_KEY = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))


@dataclass
class World:
    """The surroundings of a case. `address` is that of the test's HTTP server, which answers every request."""

    database: Database
    database_url: str
    address: str
    dispatched_turns: Callable[[], set[str]]  # returns the ids of the turns that have a message in the broker
    made: list[Tenant] = field(default_factory=list)

    def value(self, query: str, *values: object) -> Any:
        """Return the only column of the only row."""
        with psycopg.connect(self.database_url) as db:
            row = db.execute(query, values).fetchone()
        return row and row[0]

    def execute(self, statement: str, *values: object) -> None:
        with psycopg.connect(self.database_url) as db:
            db.execute(statement, values)


@dataclass(frozen=True)
class JobCase:
    """A job's case. `seen` returns the state that the job changes; once the job is done, it equals `due`.

    In the middle of the job, a change of `table` (of a new row for which `which` is true) blocks until the test lets it go on. `later` is
    a statement that makes an hour pass after a run was killed.
    """

    job: str
    make: Callable[[World], Awaitable[None]]
    seen: Callable[[World], object]
    due: Callable[[World], object]
    table: str
    on: str
    which: Callable[[World], str]
    begun: bool  # True if a part is committed before the middle
    counted: tuple[str, int]  # a count that the complete run reports
    later: str = "SELECT 1"
    env: dict[str, str] = field(default_factory=dict)


# turns.sweep: sixty messages accepted an hour ago whose dispatches were lost.


async def undispatched_turns(world: World) -> None:
    made = await tenant(world.database, sessions=60)
    world.made.append(made)
    for session_id in made.session_ids:
        await intake.accept(world.database, made.workspace_id, session_id, "Is order 41 paid?")
    world.execute("UPDATE turns SET opened_at = opened_at - interval '1 hour', dispatched_at = dispatched_at - interval '1 hour'")


def open_turns(world: World) -> object:
    with psycopg.connect(world.database_url) as db:
        return {str(row[0]) for row in db.execute("SELECT id FROM turns")}


# usage.fold_totals and analytics.roll_up: two agents with some thousand facts each.


async def busy_agents(world: World) -> None:
    for _ in range(2):
        made = await tenant(world.database, sessions=30, tools=({"name": "refund"},))
        filled(world.database_url, made, days_ago=3 / 24, turns=45)
        ours = "workspace_id = %s", made.workspace_id
        world.execute(f"UPDATE tool_calls SET state = 'running' WHERE {ours[0]}", ours[1])
        world.execute(
            f"UPDATE tool_calls c SET state = 'succeeded', tool_id = t.id FROM tools t WHERE t.{ours[0]} AND c.{ours[0]}", *ours[1:] * 2
        )
        world.made.append(made)
    # The rows were inserted just now, so their facts have the wrong start; correct it to the sessions' start.
    world.execute("UPDATE usage_facts SET started_at = sessions.started_at FROM sessions WHERE sessions.id = session_id AND started = 1")


def totals(world: World) -> object:
    with psycopg.connect(world.database_url) as db:
        agents = db.execute("SELECT total_sessions, total_messages, total_tokens_used, total_cost FROM agents ORDER BY id").fetchall()
        return agents, db.execute("SELECT use_count FROM tools ORDER BY workspace_id").fetchall()


def recounted(world: World) -> object:
    counts = "count(*), sum(message_count)::integer, sum(tokens_used), sum(cost_usd)"
    with psycopg.connect(world.database_url) as db:
        agents = db.execute(f"SELECT {counts} FROM sessions GROUP BY agent_id ORDER BY agent_id").fetchall()
        return agents, db.execute("SELECT count(*) FROM tool_calls GROUP BY workspace_id ORDER BY workspace_id").fetchall()


# retention.clean_up and sessions.abandon_idle: conversations that ended, or became idle, long ago.


async def expired_sessions(world: World) -> None:
    world.made.append(await tenant(world.database, sessions=14))
    filled(world.database_url, world.made[0], turns=20)


async def idle(world: World) -> None:
    world.made.append(await tenant(world.database, sessions=80))
    filled(world.database_url, world.made[0], days_ago=2, status="active")


def abandoned(world: World) -> object:
    in_log = "SELECT count(*) FROM events WHERE content->>'status' = 'abandoned'"
    return world.value("SELECT count(*) FROM sessions WHERE status = 'abandoned'"), world.value(in_log)


# approvals.expire: undecided approvals of paused sessions, so that no turn expires them itself.


async def undecided_approvals(world: World) -> None:
    made = await tenant(world.database, sessions=60, tools=(REFUND,))
    world.made.append(made)
    for session_id in made.session_ids:
        turn_id = (await intake.accept(world.database, made.workspace_id, session_id, "Pay me back.")).turn_id
        assert turn_id is not None
        await run_turn(world.database, turn_id, Script(calls(tool_call(1))), approval_s=60.0)
        await session_control.set_mode(world.database, made.workspace_id, session_id, "paused", by="ops")
    world.execute("UPDATE approvals SET expires_at = expires_at - interval '1 hour', requested_at = requested_at - interval '1 hour'")


def expired(world: World) -> object:
    in_log = "SELECT count(*) FROM events WHERE content->>'decision' = 'expired'"
    return world.value("SELECT count(*) FROM approvals WHERE status = 'expired'"), world.value(in_log)


# tools.check_all_health: integrations whose check was due an hour ago.


async def unchecked_integrations(world: World) -> None:
    tools = tuple({"name": f"t{n}", "integration": {"configuration": {"url": f"{world.address}/{n}"}}} for n in range(40))
    world.made.append(await tenant(world.database, tools=tools))
    world.execute("UPDATE tool_integrations SET next_health_check = now() - interval '1 hour'")


def known_healthy(world: World) -> object:
    return world.value("SELECT count(*) FROM tool_integrations WHERE health_status = 'healthy' AND next_health_check > now()")


# usage.audit: one conversation whose message count is wrong.


async def wrong_counter(world: World) -> None:
    world.made.append(await tenant(world.database, sessions=5))
    filled(world.database_url, world.made[0], days_ago=1 / 24)
    world.execute("UPDATE sessions SET message_count = message_count + 1 WHERE id = %s", world.made[0].session_id)


def violation_found(world: World) -> object:
    return world.value("SELECT violations <> '{}' FROM audits WHERE finished_at IS NOT NULL ORDER BY id DESC LIMIT 1")


# secrets.reseal: three workspaces' secrets after a rotation.


async def rotated_secrets(world: World) -> None:
    for _ in range(3):
        made = await tenant(world.database, tools=tuple({"name": f"t{number}", "integration": {}} for number in range(5)))
        world.made.append(made)
        with psycopg.connect(world.database_url) as db:
            for (one,) in db.execute("SELECT id FROM tool_integrations WHERE workspace_id = %s", [made.workspace_id]).fetchall():
                sealed = SecretBox(OLD_KEY).seal(made.workspace_id, one, "token", "hush")
                db.execute("UPDATE tool_integrations SET secrets = jsonb_build_object('token', %s::text) WHERE id = %s", [sealed, one])


def secrets_under_new_key(world: World) -> object:
    box = SecretBox(NEW_KEY)
    with psycopg.connect(world.database_url) as db:
        rows = db.execute("SELECT workspace_id, id, secrets->>'token' FROM tool_integrations").fetchall()
    return [box.open(workspace, one, "token", text) for workspace, one, text in rows if box.is_current(text)]


def last(ids: list[UUID]) -> UUID:
    return sorted(ids)[-1]


def last_session(column: str) -> Callable[[World], str]:
    return lambda world: f"NEW.{column} = '{last(world.made[0].session_ids)}'"


HOUR_ON_HEALTH = (
    """UPDATE tool_integrations SET next_health_check = next_health_check - interval '1 hour' WHERE last_health_check IS NULL"""
)

JOB_CASES = [
    JobCase(
        "turns.sweep",
        *(undispatched_turns, lambda world: world.dispatched_turns(), open_turns),
        *("turns", "UPDATE", lambda world: f"NEW.session_id = '{last(world.made[0].session_ids)}'"),
        begun=False,
        counted=("turns_dispatched", 60),
        later="UPDATE turns SET dispatched_at = dispatched_at - interval '1 hour'",
    ),
    JobCase(
        "usage.fold_totals",
        *(busy_agents, totals, recounted),
        *("tools", "UPDATE", lambda world: f"NEW.workspace_id = '{world.made[1].workspace_id}'"),
        begun=True,
        counted=("agents", 2),
    ),
    JobCase(
        "analytics.roll_up",
        *(busy_agents, lambda world: rolled_up(world.database_url, "quarter"), lambda world: recount(world.database_url, quarter)),
        *("agent_rollups", "INSERT", lambda world: f"NEW.agent_id = '{world.made[1].agent_id}'"),
        begun=True,
        counted=("facts", 13680),
    ),
    JobCase(
        "retention.clean_up",
        *(expired_sessions, lambda world: left(world.database_url, world.made[0].session_ids), lambda world: {}),
        *("deletions", "UPDATE", lambda world: f"NEW.session_id = '{last(world.made[0].session_ids)}'"),
        begun=True,
        counted=("sessions_deleted", 14),
    ),
    JobCase(
        "sessions.abandon_idle",
        *(idle, abandoned, lambda world: (80, 80)),
        *("sessions", "UPDATE", last_session("id")),
        begun=True,
        counted=("sessions_abandoned", 80),
    ),
    JobCase(
        "approvals.expire",
        *(undecided_approvals, expired, lambda world: (60, 60)),
        *("approvals", "UPDATE", last_session("session_id")),
        begun=True,
        counted=("approvals_expired", 60),
    ),
    JobCase(
        "tools.check_all_health",
        *(unchecked_integrations, known_healthy, lambda world: 40),
        *(
            "tool_integrations",
            "UPDATE",
            lambda world: (
                "NEW.last_health_check IS NOT NULL AND NEW.id = (SELECT id FROM tool_integrations ORDER BY next_health_check LIMIT 1)"
            ),
        ),
        begun=True,
        counted=("checked", 40),
        later=HOUR_ON_HEALTH,
        env={"TURNLINE_ALLOWED_NETWORKS": "127.0.0.0/8"},
    ),
    JobCase(
        "usage.audit",
        *(wrong_counter, violation_found, lambda world: True),
        *("audits", "UPDATE", lambda world: "true"),
        begun=False,
        counted=("violations", 1),
    ),
    JobCase(
        "secrets.reseal",
        *(rotated_secrets, secrets_under_new_key, lambda world: ["hush"] * 15),
        *("tool_integrations", "UPDATE", lambda world: f"NEW.workspace_id = '{last([one.workspace_id for one in world.made])}'"),
        begun=True,
        counted=("secrets_resealed", 15),
        env={"TURNLINE_SECRET_KEYS": f"{NEW_KEY},{OLD_KEY}"},
    ),
]
