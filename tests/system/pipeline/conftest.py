"""Fixtures: one database, one broker and one stack per test module."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from celery import Celery

from settings import Settings
from store.database import Database
from tasks.dispatcher import Dispatcher
from tests.support.servers import EmbeddedValkey
from tests.support.stack import Stack, running


@pytest.fixture(scope="module")
def stack(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Provide a stack without workers; each test starts those that it needs."""
    with EmbeddedValkey(None) as broker, running(Stack(database_url, broker.url, Path(tmp_path_factory.mktemp("stack")))) as made:
        yield made


@pytest.fixture
async def database(stack: Stack) -> AsyncIterator[Database]:
    made = Database(stack.database_url, pool_size=10)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def dispatcher(stack: Stack) -> Iterator[Dispatcher]:
    """Provide a dispatcher like the API's."""
    from tasks.celery_app import make_app

    app: Celery = make_app(Settings(_env_file=None, DATABASE_URL=stack.database_url, CELERY_BROKER_URL=stack.broker_url))
    made = Dispatcher(app, stack.database_url)
    made.start()
    yield made
    made.close()
    app.close()
