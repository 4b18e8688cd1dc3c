"""Intake: a message is accepted once, and a repeat is published and dispatched again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from celery import Celery

from realtime.messages import LogAdvanced
from realtime.publisher import Publisher
from realtime.subscriber import Subscriber, Subscription
from store.database import Database
from tasks.dispatcher import Dispatcher
from tasks.intake import accept_and_dispatch
from tests.support import factories
from tests.support.db import fetch


@pytest.fixture
async def publisher(broker_url: str) -> AsyncIterator[Publisher]:
    made = Publisher(broker_url)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def subscriber(broker_url: str) -> AsyncIterator[Subscriber]:
    made = Subscriber(broker_url)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def dispatcher(broker_url: str, database_url: str) -> AsyncIterator[Dispatcher]:
    with Celery(broker=broker_url, set_as_current=False) as app:
        made = Dispatcher(app, database_url)
        made.start()
        yield made
        await asyncio.to_thread(made.close)


async def next_offset(subscription: Subscription) -> int:
    """Return the next published offset; -1 is a nudge of the subscriber itself."""
    async with asyncio.timeout(10):
        while True:
            message = await subscription.next(1)
            if isinstance(message, LogAdvanced) and message.offset >= 0:
                return message.offset


async def test_message_is_accepted_once_and_published_each_time(
    database: Database, database_url: str, publisher: Publisher, subscriber: Subscriber, dispatcher: Dispatcher
):
    made = await factories.tenant(database)

    async with subscriber.subscribe(made.session_id) as subscription:
        await asyncio.sleep(0.5)  # until the channel is subscribed
        accepted = []
        for _ in range(2):
            accepted.append(
                await accept_and_dispatch(
                    database, publisher, dispatcher, made.workspace_id, made.session_id, "Is order 41 paid?", message_key="k"
                )
            )
            assert await next_offset(subscription) == 0

    assert [one.repeated for one in accepted] == [False, True]
    assert accepted[0].turn_id == accepted[1].turn_id
    async with asyncio.timeout(10):
        while fetch(database_url, "SELECT dispatched_at IS NOT NULL FROM turns WHERE id = %s", accepted[0].turn_id) != [(True,)]:
            await asyncio.sleep(0.05)
