"""Budgets on a real Postgres: reserved before a call, settled after it, never exceeded under concurrency."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest

from engine.enums import FinishReason, ModelCallState
from engine.errors import ReplyLost
from engine.events import ModelReply, ToolCall, ToolOutcome, Usage
from engine.model.request import Bound, Cost, ModelRequest
from engine.turn.commit import Finish, Park, Reserve, Reserved, SettledCall, TurnCommit
from engine.turn.context import TurnContext
from engine.turn.runner import TurnRunner
from store.conversations import budgets, intake
from store.database import Database
from tests.support.db import rows
from tests.support.engine_runs import claimed, run_turn
from tests.support.factories import Tenant, tenant

Amount = Decimal | int  # dollars or tokens
MOST_USD = Decimal("0.0100000001")
MOST = Bound(1000, MOST_USD)
USED = Usage(400, 0, 0, 210, 0)
COST = Decimal("0.0061000003")


@dataclass
class PricedPerformer:
    """A performer whose calls may use up to `MOST`, and do use `USED` at `COST`. `meanwhile` runs during each; its error is the call's."""

    meanwhile: Callable[[int], Awaitable[None]] | None = None
    bound_is: Bound = MOST
    called: int = 0

    async def call_model(self, request: ModelRequest, on_delta: Callable[[str], None]) -> tuple[ModelReply, Cost]:
        self.called += 1
        if self.meanwhile is not None:
            await self.meanwhile(self.called)
        return ModelReply("Yes.", (), FinishReason.STOP, "gpt-4o", USED), Cost(COST, "test")

    async def call_tool(self, context: TurnContext, call: ToolCall, idempotency_key: str, *, begun: bool) -> ToolOutcome:
        raise AssertionError("this test uses no tools")

    def bound(self, request: ModelRequest) -> Bound:
        return self.bound_is

    def estimate(self, request: ModelRequest, streamed: str) -> tuple[Usage, Cost]:
        raise AssertionError("this test cuts no call off")


async def budget(database: Database, made: Tenant, cap: Amount, **fields: Any) -> UUID:
    given = {"scope": "workspace", "scope_id": None, "unit": "usd", "period": "total", "cap": Decimal(cap)} | fields
    async with database.transaction(made.workspace_id) as db:
        made_id: UUID = (await budgets.create(db, made.workspace_id, **given))["id"]
    return made_id


async def shown(database: Database, made: Tenant, budget_id: UUID) -> tuple[Amount, Amount]:
    """Return the spent and the reserved amount of a budget."""
    async with database.transaction(made.workspace_id) as db:
        row = await budgets.get(db, budget_id)
    return row["spent"], row["reserved"]


async def opened(database: Database, made: Tenant, session_id: UUID | None = None) -> UUID:
    accepted = await intake.accept(database, made.workspace_id, session_id or made.session_id, "Is order 41 paid?")
    assert accepted.turn_id is not None
    return accepted.turn_id


def superuser(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(statement)


@pytest.fixture
async def budgets_checked(database_url: str) -> AsyncIterator[None]:
    """Make Postgres refuse commits that exceed a budget, or whose reserved amount differs from the sum of its reservations."""
    superuser(
        database_url,
        """
        ALTER TABLE budgets ADD CONSTRAINT never_exceeded CHECK (spent + reserved <= cap AND reserved >= 0);
        CREATE FUNCTION reserved_equals_holds() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        DECLARE b budgets;
        BEGIN
            SELECT * INTO b FROM budgets WHERE id = NEW.id;
            IF b.reserved <> (SELECT coalesce(sum(amount), 0) FROM budget_holds h WHERE h.budget_id = b.id
                              AND (b.period = 'total' OR h.day = b.day)) THEN
                RAISE EXCEPTION 'budget % has % reserved', b.id, b.reserved;
            END IF;
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER reserved_equals_holds AFTER UPDATE ON budgets DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION reserved_equals_holds()""",
    )
    yield
    superuser(
        database_url,
        "DROP TRIGGER reserved_equals_holds ON budgets; DROP FUNCTION reserved_equals_holds;"
        " ALTER TABLE budgets DROP CONSTRAINT never_exceeded",
    )


@pytest.mark.usefixtures("budgets_checked")
async def test_concurrent_calls_never_exceed_budget(database: Database):
    """Reservations count in full until their calls are settled."""
    turns_at_once, room = 1000, 300
    made = await tenant(database, sessions=turns_at_once)
    budget_id = await budget(database, made, MOST_USD * room)
    turn_ids = [await opened(database, made, session_id) for session_id in made.session_ids]
    go = asyncio.Event()

    async def wait(number: int) -> None:
        await go.wait()

    world = PricedPerformer(wait)

    async def one(turn_id: UUID) -> str:
        outcome = await run_turn(database, turn_id, world)
        assert isinstance(outcome, Finish)
        return outcome.status

    running = [asyncio.create_task(one(turn_id)) for turn_id in turn_ids]
    while sum(task.done() for task in running) + world.called < turns_at_once:
        await asyncio.sleep(0.05)
    assert await shown(database, made, budget_id) == (0, MOST_USD * room)
    go.set()
    statuses = await asyncio.gather(*running)

    assert (statuses.count("done"), statuses.count("failed"), world.called) == (room, turns_at_once - room, room)
    assert await shown(database, made, budget_id) == (COST * room, 0)
    ledger = "SELECT sum(cost_usd), count(*) FILTER (WHERE state = 'reserved') FROM model_calls"
    assert await rows(database, made, ledger) == [(COST * room, 0)]


@pytest.mark.usefixtures("budgets_checked")
async def test_all_budget_kinds_hold_under_lost_replies_and_concurrency(database: Database):
    sessions, dice = 120, random.Random(8)
    made = await tenant(database, sessions=sessions)
    one_session = {"scope": "session", "scope_id": made.session_id}
    of = {
        "workspace, dollars": await budget(database, made, MOST_USD * 60),
        "workspace, dollars a day": await budget(database, made, MOST_USD * 70, period="day"),
        "workspace, tokens a day": await budget(database, made, MOST.tokens * 65, unit="tokens", period="day"),
        "agent, tokens": await budget(database, made, MOST.tokens * 50, unit="tokens", scope="agent", scope_id=made.agent_id),
        "session, dollars": await budget(database, made, MOST_USD * 2, **one_session),
        "session, tokens": await budget(database, made, MOST.tokens * 3, **one_session, unit="tokens"),
    }
    turn_ids = [await opened(database, made, session_id) for session_id in made.session_ids]

    async def now_and_then_lost(number: int) -> None:
        await asyncio.sleep(dice.uniform(0, 0.05))
        if dice.random() < 0.2:
            raise ReplyLost("the connection broke")

    await asyncio.gather(*(run_turn(database, turn_id, PricedPerformer(now_and_then_lost)) for turn_id in turn_ids))

    ((settled, unknown, failed),) = await rows(
        database,
        made,
        "SELECT count(*) FILTER (WHERE state = 'settled'), count(*) FILTER (WHERE state = 'unknown'),"
        " count(*) FILTER (WHERE state = 'failed') FROM model_calls",
    )
    assert settled >= 20
    assert unknown >= 5, "no reply was lost, so the test proves nothing"
    assert failed >= 10, "no call was refused, so the test proves nothing"
    tokens = USED.input_tokens + USED.output_tokens
    for name in ("workspace, dollars", "workspace, dollars a day"):
        assert await shown(database, made, of[name]) == (COST * settled, MOST_USD * unknown), name
    for name in ("workspace, tokens a day", "agent, tokens"):
        assert await shown(database, made, of[name]) == (tokens * settled, MOST.tokens * unknown), name
    mine = f"SELECT count(*) FILTER (WHERE state = 'settled') FROM model_calls WHERE session_id = '{made.session_id}'"
    ((settled_here,),) = await rows(database, made, mine)
    assert (await shown(database, made, of["session, dollars"]))[0] == COST * settled_here


async def test_unused_reservation_is_returned(database: Database):
    """The cap allows one call at its most: the second fits because the first is settled before the second is reserved."""
    made = await tenant(database)
    budget_id = await budget(database, made, MOST_USD + COST)

    for text in ("first", "second"):
        turn_id = await opened(database, made)
        assert await run_turn(database, turn_id, PricedPerformer()) == Finish("done"), text
    assert await shown(database, made, budget_id) == (2 * COST, 0)

    turn_id = await opened(database, made)
    claim = await claimed(database, turn_id)
    outcome = await TurnRunner(claim, PricedPerformer(), claim.context, claim.resume_point).run()
    assert isinstance(outcome, Finish)
    assert (outcome.status, outcome.error_class) == ("failed", "BudgetSpent")
    assert outcome.error_detail == (
        "The workspace's total budget of $0.0161000004 is spent: $0.0122000006 spent, $0 reserved, $0.0100000001 more wanted."
    )


async def test_commit_settles_call_before_reserving_next(database: Database):
    made = await tenant(database)
    budget_id = await budget(database, made, MOST_USD + COST)
    claim = await claimed(database, await opened(database, made))

    await claim.write(TurnCommit(reserve=reservation(0)))
    written = await claim.write(TurnCommit(model_call=settled_at(0), reserve=reservation(1)))

    assert written.budget_refusal is None
    assert await shown(database, made, budget_id) == (COST, MOST_USD)


def reservation(step: int, *, again: bool | None = None, bound: Bound = MOST) -> Reserve:
    """Return the reservation of a call; the claim has already inserted the first one's row."""
    return Reserve(Reserved(step, 0), "openai", "gpt-4o", 0, bound, again=step == 0 if again is None else again)


def settled_at(step: int) -> SettledCall:
    reply = ModelReply("", (), FinishReason.STOP, "gpt-4o", USED)
    return SettledCall(Reserved(step, 0), ModelCallState.SETTLED, reply, Cost(COST, "test"))


async def write_twice(claim: Any, commit: TurnCommit) -> Any:
    """Write `commit`, lose the reply, and send the same write again; return the second result."""
    await claim.write(commit)
    claim._writes -= 1
    return await claim.write(commit)


async def test_repeated_write_reserves_and_spends_once(database: Database):
    made = await tenant(database)
    budget_id = await budget(database, made, MOST_USD * 3)
    claim = await claimed(database, await opened(database, made))

    assert (await write_twice(claim, TurnCommit(reserve=reservation(0)))).budget_refusal is None
    assert await shown(database, made, budget_id) == (0, MOST_USD)
    assert (await write_twice(claim, TurnCommit(model_call=settled_at(0), reserve=reservation(1)))).budget_refusal is None
    assert await shown(database, made, budget_id) == (COST, MOST_USD)
    await write_twice(claim, TurnCommit(model_call=settled_at(1), outcome=Finish("done")))
    assert await shown(database, made, budget_id) == (2 * COST, 0)


async def test_repeated_write_returns_refusal_again(database: Database):
    made = await tenant(database)
    budget_id = await budget(database, made, COST)
    claim = await claimed(database, await opened(database, made))

    assert (await write_twice(claim, TurnCommit(reserve=reservation(0)))).budget_refusal
    await claim.write(TurnCommit(model_call=SettledCall(Reserved(0, 0), ModelCallState.FAILED, error_class="NotSent"), outcome=Park(0.0)))
    assert await shown(database, made, budget_id) == (0, 0)


async def test_repeated_write_after_cancel_request_returns_first_result(database: Database):
    made = await tenant(database)
    budget_id = await budget(database, made, MOST_USD * 3)
    turn_id = await opened(database, made)
    claim = await claimed(database, turn_id)

    await claim.write(TurnCommit(reserve=reservation(0)))
    await claim.write(TurnCommit(model_call=settled_at(0), reserve=reservation(1)))
    await database.call("SELECT * FROM cancel_turns($1, NULL, $2, 'Dana')", made.workspace_id, turn_id)
    claim._writes -= 1
    written = await claim.write(TurnCommit(model_call=settled_at(0), reserve=reservation(1)))

    assert (written.cancel_reason, written.budget_refusal) == (None, None), (
        "the call is in the ledger; the worker learns of the cancellation in the usual way"
    )
    assert claim.outstanding == Reserved(1, 0)
    assert await shown(database, made, budget_id) == (COST, MOST_USD)


async def test_call_of_unknown_outcome_keeps_its_reservation(database: Database):
    made = await tenant(database)
    budget_id = await budget(database, made, MOST_USD * 2)
    turn_id = await opened(database, made)
    claim = await claimed(database, turn_id)
    await claim.write(TurnCommit(reserve=reservation(0)))
    await rows(database, made, "UPDATE sessions SET lease_until = now() - interval '1 second' RETURNING 1")

    assert await run_turn(database, turn_id, PricedPerformer()) == Finish("done")

    assert await rows(database, made, "SELECT state FROM model_calls ORDER BY attempt") == [("unknown",), ("settled",)]
    assert await shown(database, made, budget_id) == (COST, MOST_USD)


async def test_daily_budget_resets_at_midnight(database: Database, database_url: str):
    made = await tenant(database, sessions=3)
    by_day = await budget(database, made, MOST_USD, period="day")
    in_all = await budget(database, made, MOST_USD * 2)
    claim = await claimed(database, await opened(database, made))
    await claim.write(TurnCommit(reserve=reservation(0)))
    superuser(database_url, f"UPDATE budgets SET day = day - 1 WHERE workspace_id = '{made.workspace_id}'")
    superuser(database_url, f"UPDATE budget_holds SET day = day - 1 WHERE workspace_id = '{made.workspace_id}'")

    assert await shown(database, made, by_day) == (0, 0), "shown as of today, though nothing was reserved today"
    assert await run_turn(database, await opened(database, made, made.session_ids[1]), PricedPerformer()) == Finish("done")
    assert await shown(database, made, by_day) == (COST, 0)
    await claim.write(TurnCommit(model_call=settled_at(0), outcome=Finish("done")))

    assert await shown(database, made, by_day) == (COST, 0), "yesterday's call counts against yesterday's budget"
    assert await shown(database, made, in_all) == (2 * COST, 0)
    assert await rows(database, made, "SELECT count(*) FROM budget_holds") == [(0,)]


async def test_model_without_price_fails_only_under_dollar_budget(database: Database):
    made = await tenant(database)
    budget_id = await budget(database, made, 10_000, unit="tokens")
    unpriced = PricedPerformer(bound_is=Bound(MOST.tokens, None))

    assert await run_turn(database, await opened(database, made), unpriced) == Finish("done")
    assert await shown(database, made, budget_id) == (610, 0)
    await budget(database, made, 1000, scope="agent", scope_id=made.agent_id)
    outcome = await run_turn(database, await opened(database, made), unpriced)

    assert isinstance(outcome, Finish)
    assert (outcome.error_class, outcome.error_detail) == (
        "BudgetSpent",
        "The agent has a budget in dollars, and no price is known for this model.",
    )
    assert unpriced.called == 1
    assert await shown(database, made, budget_id) == (610, 0)


async def test_deleting_budget_deletes_reservations_of_running_calls(database: Database):
    made = await tenant(database, sessions=20)
    gone, kept = await budget(database, made, MOST_USD * 99), await budget(database, made, MOST_USD * 99, period="day")
    turn_ids = [await opened(database, made, session_id) for session_id in made.session_ids]

    async def remove(number: int) -> None:
        await asyncio.sleep(0.02)
        if number == 10:
            async with database.transaction(made.workspace_id) as db:
                await budgets.remove(db, gone)

    world = PricedPerformer(remove)
    rests = await asyncio.gather(*(run_turn(database, turn_id, world) for turn_id in turn_ids))

    assert set(rests) == {Finish("done")}
    assert await shown(database, made, kept) == (20 * COST, 0)
    assert await rows(database, made, "SELECT count(*) FROM budget_holds") == [(0,)]


async def test_raised_cap_allows_next_call(database: Database):
    made = await tenant(database)
    budget_id = await budget(database, made, 0)
    assert await run_turn(database, await opened(database, made), PricedPerformer()) != Finish("done")
    async with database.transaction(made.workspace_id) as db:
        await budgets.change(db, budget_id, Decimal(1))

    assert await run_turn(database, await opened(database, made), PricedPerformer()) == Finish("done")
    assert await rows(database, made, "SELECT status, error_class FROM turns ORDER BY opened_at_offset") == [
        ("failed", "BudgetSpent"),
        ("done", None),
    ]


async def test_call_without_usage_spends_whole_reservation(database: Database):
    made = await tenant(database)
    dollars, tokens = await budget(database, made, 1), await budget(database, made, 9000, unit="tokens")
    claim = await claimed(database, await opened(database, made))
    await claim.write(TurnCommit(reserve=reservation(0)))
    untold = ModelReply("Yes.", (), FinishReason.STOP, "gpt-4o", None)

    await claim.write(TurnCommit(model_call=SettledCall(Reserved(0, 0), ModelCallState.SETTLED, untold), outcome=Finish("done")))

    assert await shown(database, made, dollars) == (MOST_USD, 0)
    assert await shown(database, made, tokens) == (MOST.tokens, 0)
