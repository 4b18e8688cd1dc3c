"""EventReader: the order of what it yields, and how it ends."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from engine.errors import NotFound
from realtime import event_reader
from realtime.event_reader import EventReader, EventsRead, Idle
from realtime.messages import Delta, LogAdvanced, channel_of
from realtime.subscriber import Subscriber
from store.conversations import intake
from store.database import Database
from tests.support import factories
from tests.support.db import opened
from tests.support.factories import Tenant
from tests.support.proxy import Proxy


@pytest.fixture
async def tenant(database: Database) -> Tenant:
    return await factories.tenant(database)


@pytest.fixture
def subscriber() -> Subscriber:
    """Return a subscriber without a server; the tests put messages into its subscriptions."""
    return Subscriber("")


@pytest.fixture
def reader(database: Database, subscriber: Subscriber) -> EventReader:
    return EventReader(database, subscriber)


def publish(subscriber: Subscriber, tenant: Tenant, message: LogAdvanced | Delta) -> None:
    for subscription in subscriber._subscriptions[channel_of(tenant.session_id)]:
        subscription.put(message)


async def write(database: Database, tenant: Tenant, message: str) -> None:
    await intake.accept(database, tenant.workspace_id, tenant.session_id, message)


async def append_reply(database: Database, tenant: Tenant, turn_id: UUID) -> None:
    reply = '[{"kind": "agent_message", "source": "ai_agent", "content": {"text": "Yes."}}]'
    query = text("SELECT append_events(:workspace, :session, :turn, 0, CAST(:events AS jsonb))")
    values = {"workspace": tenant.workspace_id, "session": tenant.session_id, "turn": turn_id, "events": reply}
    async with database.transaction(tenant.workspace_id) as db:
        await db.execute(query, values)


async def test_pages_are_read_before_the_reader_is_idle(reader: EventReader, database: Database, tenant: Tenant):
    for number in range(5):
        await write(database, tenant, f"m{number}")

    offsets, items = [], []
    async with aclosing(reader.follow(tenant.workspace_id, tenant.session_id, 0, page_size=2)) as followed:
        async for item in followed:
            items.append(type(item))
            if isinstance(item, Idle):
                break
            assert isinstance(item, EventsRead)
            offsets += [event["offset"] for event in item.events]

    assert offsets == [1, 2, 3, 4]
    assert items == [EventsRead, EventsRead, Idle]


async def test_realtime_messages_make_it_read_and_deltas_are_passed_on(
    reader: EventReader, subscriber: Subscriber, database: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(event_reader, "LOOK_EVERY_S", 60)
    accepted = await intake.accept(database, tenant.workspace_id, tenant.session_id, "Is order 41 paid?")
    assert accepted.turn_id is not None
    async with aclosing(reader.follow(tenant.workspace_id, tenant.session_id, 0)) as followed:
        assert await anext(followed) == Idle()
        publish(subscriber, tenant, Delta(accepted.turn_id, 1, "Ye"))
        assert await anext(followed) == Delta(accepted.turn_id, 1, "Ye")
        await append_reply(database, tenant, accepted.turn_id)
        publish(subscriber, tenant, LogAdvanced(1))
        read = await anext(followed)
        assert isinstance(read, EventsRead)
        assert [event["offset"] for event in read.events] == [1]
        assert await anext(followed) == Idle()
        publish(subscriber, tenant, Delta(accepted.turn_id, 1, "s."))  # arrives after its reply
        other = Delta(uuid4(), 1, "Next")
        publish(subscriber, tenant, other)
        assert await anext(followed) == other


async def test_log_is_read_without_realtime_messages(
    reader: EventReader, database: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(event_reader, "LOOK_EVERY_S", 0.1)
    async with aclosing(reader.follow(tenant.workspace_id, tenant.session_id, -1)) as followed:
        assert await anext(followed) == Idle()
        await write(database, tenant, "one")
        async with asyncio.timeout(10):
            while isinstance(item := await anext(followed), Idle):
                pass
        assert isinstance(item, EventsRead)


async def test_stop_ends_every_follower_at_once(reader: EventReader, subscriber: Subscriber, tenant: Tenant):
    followers = [asyncio.create_task(_items(reader, tenant)) for _ in range(3)]
    async with asyncio.timeout(10):
        while len(subscriber._subscriptions.get(channel_of(tenant.session_id), ())) < 3:
            await asyncio.sleep(0.01)
        reader.stop()
        await asyncio.gather(*followers)
    assert subscriber._subscriptions == {}
    assert await _items(reader, tenant) == []


async def test_limited_follower_ends_after_a_last_look(reader: EventReader, tenant: Tenant):
    began = asyncio.get_running_loop().time()
    assert await _items(reader, tenant, for_s=0.3) == [Idle(), Idle()]
    assert 0.3 <= asyncio.get_running_loop().time() - began < event_reader.LOOK_EVERY_S


async def test_unknown_session_is_not_found(reader: EventReader, tenant: Tenant, subscriber: Subscriber):
    with pytest.raises(NotFound):
        async with aclosing(reader.follow(tenant.workspace_id, uuid4(), -1)) as followed:
            await anext(followed)
    assert subscriber._subscriptions == {}


async def test_unavailable_database_is_yielded_as_an_error_until_it_is_back(database_url: str, subscriber: Subscriber, tenant: Tenant):
    with Proxy(urlsplit(database_url).port or 0) as proxy:
        async with opened(proxy.url(database_url)) as database:
            reader = EventReader(database, subscriber)
            async with aclosing(reader.follow(tenant.workspace_id, tenant.session_id, -1)) as followed:
                assert await anext(followed) == Idle()
                proxy.take_down()
                subscriber.nudge()
                failed = await anext(followed)
                proxy.heal()
                async with asyncio.timeout(30):
                    while await anext(followed) != Idle():
                        pass
    assert isinstance(failed, Idle)
    assert failed.error is not None


async def _items(reader: EventReader, tenant: Tenant, for_s: float | None = None) -> list[object]:
    return [item async for item in reader.follow(tenant.workspace_id, tenant.session_id, -1, for_s=for_s)]
