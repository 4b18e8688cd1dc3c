"""`turnline redrive` and `turnline release`, as processes, on a real database and broker."""

from __future__ import annotations

import asyncio
import getpass
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from store.conversations import intake
from tests.support.cli import Turnline
from tests.support.cli import turnline as run_turnline
from tests.support.db import fetch_value, opened
from tests.support.factories import Tenant, tenant
from tests.support.servers import EmbeddedValkey, free_port


@pytest.fixture
def turnline(tmp_path: Path, database_url: str) -> Turnline:
    return partial(run_turnline, directory=tmp_path, DATABASE_URL=database_url)


async def dead_turns(database_url: str, count: int = 1) -> tuple[Tenant, list[UUID]]:
    """Create a session with `count` turns that died because their claims expired."""
    turn_ids = []
    async with opened(database_url) as database:
        created = await tenant(database)
        for number in range(count):
            accepted = await intake.accept(database, created.workspace_id, created.session_id, f"m{number}")
            assert accepted.turn_id is not None
            turn_ids.append(accepted.turn_id)
            while (await database.call("SELECT * FROM claim_turn($1, 'a', 0.01, 1, 400)", accepted.turn_id))["o_outcome"] != "dead":
                await asyncio.sleep(0.02)
    return created, turn_ids


async def test_redrive_opens_and_dispatches_a_dead_turn(turnline: Turnline, database_url: str, valkey: EmbeddedValkey):
    _, (turn_id,) = await dead_turns(database_url)

    done = turnline("redrive", str(turn_id), CELERY_BROKER_URL=valkey.url)

    assert done.returncode == 0, done.stderr
    assert f"The turn {turn_id} is open again and starts from its last step" in done.stdout
    assert "was dispatched" in done.stdout
    assert fetch_value(database_url, "SELECT status FROM turns WHERE id = %s", turn_id) == "queued"
    by = "SELECT content->>'by' FROM events WHERE turn_id = %s AND content->>'status' = 'redriven'"
    assert fetch_value(database_url, by, turn_id) == f"operator {getpass.getuser()}"
    again = turnline("redrive", str(turn_id))
    assert (again.returncode, "was not redriven: the turn is still open" in again.stderr) == (1, True)


@pytest.mark.parametrize(("broker", "message"), [(None, "No broker is configured here"), ("unreachable", "The broker does not answer")])
async def test_redrive_without_a_broker_leaves_it_to_the_sweep(turnline: Turnline, database_url: str, broker: str | None, message: str):
    _, (turn_id,) = await dead_turns(database_url)
    env = {"CELERY_BROKER_URL": f"redis://127.0.0.1:{free_port()}"} if broker else {}

    done = turnline("redrive", str(turn_id), "--from-scratch", "--by", "Grace", **env)

    assert done.returncode == 0, done.stderr
    assert message in done.stdout
    assert "starts from its messages" in done.stdout
    content = fetch_value(database_url, "SELECT content FROM events WHERE turn_id = %s AND content->>'status' = 'redriven'", turn_id)
    assert content == {"status": "redriven", "from_scratch": True, "by": "Grace"}


async def test_release_lifts_the_quarantine(turnline: Turnline, database_url: str):
    created, _ = await dead_turns(database_url, 3)
    session_id = str(created.session_id)
    assert fetch_value(database_url, "SELECT quarantined_at FROM sessions WHERE id = %s", created.session_id) is not None

    done = turnline("release", session_id)

    assert (done.returncode, f"The session {session_id} is released." in done.stdout) == (0, True), done.stderr
    assert fetch_value(database_url, "SELECT quarantined_at FROM sessions WHERE id = %s", created.session_id) is None
    assert "is not quarantined" in turnline("release", session_id).stdout
    for command in ("redrive", "release"):
        unknown = turnline(command, str(uuid4()))
        assert (unknown.returncode, "There is no " in unknown.stderr) == (1, True)
