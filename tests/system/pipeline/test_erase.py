"""`turnline erase`, with real workers: afterwards no table and no broker key contains the customer's text."""

from __future__ import annotations

import base64
import json
import subprocess
from typing import Any
from uuid import UUID

import psycopg
import pytest
import redis
from celery import Celery
from sqlalchemy import text

from store.conversations import intake
from store.database import Database
from tasks.dispatcher import Dispatcher
from tests.support.conversation import STREAM, tool, wait_until
from tests.support.factories import Tenant, tenant
from tests.support.invariants import violations
from tests.support.past_sessions import filled, left
from tests.support.stack import Stack

CANARY = "canary-4711"  # in every message that the customer sends
MARY = "mary@example.org"


@pytest.fixture
def stack(stack: Stack) -> Stack:
    """Provide the stack with an empty database and an empty broker."""
    with psycopg.connect(stack.database_url) as db:
        db.execute("TRUNCATE workspaces CASCADE")
    with redis.Redis.from_url(stack.broker_url) as client:
        client.flushall()
    return stack


def turnline(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    return stack.turnline("erase", *arguments)


def erased(stack: Stack, *arguments: str) -> dict[str, Any]:
    done = turnline(stack, "--customer", MARY, "--yes", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    receipt: dict[str, Any] = json.loads(done.stdout)
    return receipt


def found_in_tables(database_url: str, words: str) -> list[str]:
    """Return the tables with a row that contains `words` in any column."""
    with psycopg.connect(database_url) as db:
        tables = [name for (name,) in db.execute("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'")]
        return [name for name in tables if db.execute(f"SELECT 1 FROM {name} x WHERE x::text LIKE %s LIMIT 1", [f"%{words}%"]).fetchone()]


def found_in_broker(broker_url: str, words: str) -> list[str]:
    """Return the broker's keys whose value contains `words`, plain or in base64."""
    found = []
    with redis.Redis.from_url(broker_url) as client:
        for key in client.scan_iter():
            dumped = {b"list": lambda key: client.lrange(key, 0, -1), b"hash": lambda key: list(client.hgetall(key).values())}
            for raw in dumped.get(client.type(key), lambda key: [client.dump(key)])(key):
                bodies = [base64.b64decode(one.get("body", "")) for one in _messages(raw)]
                if any(words.encode() in one for one in (raw, *bodies)):
                    found.append(key.decode())
    return found


def _messages(raw: bytes) -> list[dict[str, Any]]:
    try:
        loaded = json.loads(raw)
    except ValueError:
        return []
    return [one for one in (loaded if isinstance(loaded, list) else [loaded]) if isinstance(one, dict)]


async def mary_and_john(database: Database, stack: Stack, sessions: int = 2) -> Tenant:
    """Create `sessions` sessions of Mary and, as the last one, one of John. Their agent has a tool that requires approval."""
    made = await tenant(database, sessions=sessions + 1, tools=(tool(stack, "unsafe", approval="required"),))
    async with database.transaction(made.workspace_id) as db:
        for session_id in made.session_ids:
            customer_id = "john" if session_id == made.session_ids[-1] else MARY
            await db.execute(
                text("UPDATE sessions SET customer_id = :customer_id, title = :title WHERE id = :id"),
                {"customer_id": customer_id, "title": f"{CANARY} of {customer_id}", "id": session_id},
            )
    return made


def post(stack: Stack, session_id: UUID, words: str, key: str, **options: Any) -> None:
    """Send a message over Celery, as a web app does."""
    with Celery(broker=stack.broker_url) as producer:
        arguments = {"session_id": str(session_id), "message_key": key, "text": words}
        producer.send_task("messages.receive", kwargs=arguments, queue="messages", **options)


async def test_erase_removes_all_data_of_one_customer_and_none_of_others(database: Database, dispatcher: Dispatcher, stack: Stack):
    """Mary has a running session, one that waits for an approval, an old one, and messages in the broker."""
    made = await mary_and_john(database, stack, sessions=3)
    running, waiting, old, johns = made.session_ids
    filled(stack.database_url, made, [old], turns=3, words=CANARY, customer=MARY)
    worker = stack.worker(queues="turns")
    for session_id, message in ((running, f"{CANARY} {STREAM}"), (waiting, f"{CANARY} [[tool orders_lookup]]"), (johns, "I am john.")):
        accepted = await intake.accept(database, made.workspace_id, session_id, message)
        assert accepted.to_dispatch is not None
        dispatcher.dispatch(accepted.to_dispatch)
    await wait_until(lambda: stack.one("SELECT count(*) FROM approvals WHERE status = 'pending'") == 1)
    await wait_until(lambda: stack.one("SELECT status FROM turns WHERE session_id = %s", running) == "running")
    await wait_until(lambda: stack.one("SELECT status FROM turns WHERE session_id = %s", johns) == "done")
    post(stack, running, f"{CANARY}, are you there?", "k1")
    post(stack, waiting, f"{CANARY}, later", "k2", countdown=3600, priority=3)
    post(stack, johns, "john's words", "k3")
    assert {"events", "sessions", "tool_calls", "approvals"} <= set(found_in_tables(stack.database_url, CANARY))
    assert found_in_broker(stack.broker_url, CANARY)
    facts = stack.one("SELECT count(*) FROM usage_facts")

    dry_run = turnline(stack, "--customer", MARY, "--dry-run")
    receipt = erased(stack)

    assert "Would erase: 3 sessions" in dry_run.stdout, dry_run.stderr
    assert "in the broker: 2 messages." in dry_run.stdout
    assert (receipt["sessions"], receipt["broker"]) == (3, {"messages": 2})
    assert receipt["events"] >= 12 + 2 + 3
    assert receipt["customer_sha256"] == stack.one("SELECT encode(sha256(%s), 'hex')", MARY.encode())
    assert found_in_tables(stack.database_url, CANARY) == ["sessions"], "John's title"
    assert found_in_tables(stack.database_url, MARY) == []
    assert found_in_broker(stack.broker_url, CANARY) == []
    assert found_in_broker(stack.broker_url, "john's words") == ["messages"]
    assert left(stack.database_url, [running, waiting, old]) == {}
    assert left(stack.database_url, [johns])["events"] == 2
    assert stack.one("SELECT count(*) FROM usage_facts") > facts, "the facts for analytics are gone"
    assert violations(stack.database_url) == {}
    assert "There is no data of this customer" in turnline(stack, "--customer", MARY).stdout
    worker.stop()


@pytest.mark.parametrize("erased_already", [True, False], ids=["erased", "being erased"])
async def test_late_message_of_an_erased_customer_is_dropped(database: Database, stack: Stack, erased_already: bool):
    made = await mary_and_john(database, stack)
    if erased_already:
        erased(stack)
    else:
        with psycopg.connect(stack.database_url) as db:
            db.execute("UPDATE sessions SET status = 'completed', deleting_at = now() WHERE id = %s", [made.session_id])
    worker = stack.worker()
    post(stack, made.session_id, f"{CANARY}, one more thing", "k9")

    await wait_until(lambda: worker.logged("Ignoring a message: unknown session"))

    assert CANARY not in worker.log.read_text()
    assert "events" not in left(stack.database_url, made.session_ids[:2])
    worker.stop()


async def test_legal_hold_refuses_erasure(database: Database, stack: Stack):
    made = await mary_and_john(database, stack)
    with psycopg.connect(stack.database_url) as db:
        db.execute("UPDATE sessions SET held_at = now() WHERE id = %s", [made.session_ids[1]])

    refused = turnline(stack, "--customer", MARY, "--yes")

    assert refused.returncode == 1
    assert "Nothing was erased. These sessions are on legal hold:" in refused.stderr
    assert str(made.session_ids[1]) in refused.stderr
    assert left(stack.database_url, made.session_ids) == {"sessions": 3}
    assert stack.one("SELECT count(*) FROM sessions WHERE status = 'active'") == 3


async def test_same_customer_id_in_two_workspaces_is_erased_separately(database: Database, stack: Stack):
    made, other = await mary_and_john(database, stack), await mary_and_john(database, stack)

    refused = turnline(stack, "--customer", MARY, "--yes")
    receipt = erased(stack, "--workspace", str(made.workspace_id))

    assert refused.returncode == 1
    assert "2 workspaces have a customer with this id" in refused.stderr
    assert receipt["sessions"] == 2
    assert left(stack.database_url, other.session_ids) == {"sessions": 3}


async def test_killed_erasure_resumes_under_the_same_receipt(database: Database, stack: Stack):
    made = await mary_and_john(database, stack)
    for session_id in made.session_ids[:2]:
        filled(stack.database_url, made, [session_id], turns=3000, words=CANARY, customer=MARY)
    process = stack.start("-m", "cli.main", "erase", "--customer", MARY, "--yes")
    await wait_until(lambda: 0 < stack.one("SELECT count(*) FROM events") < 20_000)
    process.kill()
    assert violations(stack.database_url) == {}
    assert left(stack.database_url, made.session_ids[:2])

    receipt = erased(stack)

    assert (receipt["sessions"], receipt["events"], receipt["turns"]) == (2, 24_000, 6000)
    assert stack.rows("SELECT count(*), count(finished_at) FROM erasures") == [(1, 1)]
    assert found_in_tables(stack.database_url, MARY) == []


async def test_erasure_without_a_broker_stays_unfinished(database: Database, stack: Stack):
    made = await mary_and_john(database, stack)
    env = stack.env
    stack.env = env | {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}
    refused = turnline(stack, "--customer", MARY, "--yes")
    stack.env = env

    assert "does not answer" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert left(stack.database_url, made.session_ids[:2]) == {}
    assert erased(stack)["sessions"] == 2
