"""The dispatcher that the Celery app hands in to the worker."""

from __future__ import annotations

import pytest

from settings import Settings
from worker import dispatching


def test_resources_need_a_dispatcher_factory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dispatching, "_factory", None)

    with pytest.raises(RuntimeError, match="import tasks"):
        dispatching.create(Settings(_env_file=None))


def test_celery_app_hands_in_its_dispatcher(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dispatching, "_factory", None)
    from tasks import celery_app, dispatcher

    dispatching.set_factory(celery_app._create_dispatcher)

    assert isinstance(dispatching.create(Settings(_env_file=None)), dispatcher.Dispatcher)
