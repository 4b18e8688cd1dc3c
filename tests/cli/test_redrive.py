"""`turnline redrive` and `turnline release`, as processes, on a real database and broker."""

from __future__ import annotations

import asyncio
import getpass
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from store.conversations import intake
from store.database import Database
from tests.support.cli import Turnline
from tests.support.cli import turnline as run_cli
from tests.support.db import fetch_value
from tests.support.factories import Tenant, tenant
from tests.support.servers import EmbeddedValkey, free_port


@pytest.fixture
def turnline(tmp_path: Path, database_url: str) -> Turnline:
    """Turnline the command line against the module's servers."""
    return partial(run_cli, directory=tmp_path, DATABASE_URL=database_url)


async def dead_turns(database_url: str, count: int = 1) -> tuple[Tenant, list[UUID]]:
    """A session whose messages kill their workers."""
    database = Database(database_url, pool_size=2)
    await database.open()
    try:
        made = await tenant(database)
        turn_ids = []
        for number in range(count):
            accepted = await intake.accept(database, made.workspace_id, made.session_id, f"m{number}")
            assert accepted.turn_id is not None
            turn_ids.append(accepted.turn_id)
            while (await database.call("SELECT * FROM claim_turn($1, 'a', 0.01, 1, 400)", accepted.turn_id))["o_outcome"] != "dead":
                await asyncio.sleep(0.02)
    finally:
        await database.close()
    return made, turn_ids


async def test_a_dead_turn_is_redriven_and_rung(turnline: Turnline, database_url: str, valkey: EmbeddedValkey):
    _, (turn_id,) = await dead_turns(database_url)

    done = turnline("redrive", str(turn_id), CELERY_BROKER_URL=valkey.url)

    assert done.returncode == 0, done.stderr
    assert f"The turn {turn_id} is open again and begins from its last step" in done.stdout
    assert "was rung" in done.stdout
    assert fetch_value(database_url, "SELECT status FROM turns WHERE id = %s", turn_id) == "queued"
    by = "SELECT content->>'by' FROM events WHERE turn_id = %s AND content->>'status' = 'redriven'"
    assert fetch_value(database_url, by, turn_id) == f"operator {getpass.getuser()}"
    again = turnline("redrive", str(turn_id))
    assert (again.returncode, "was not redriven: the turn is still open" in again.stderr) == (1, True)


@pytest.mark.parametrize(("broker", "says"), [(None, "No broker is configured here"), ("away", "The broker took no ring")])
async def test_without_a_broker_it_says_that_the_sweep_rings(turnline: Turnline, database_url: str, broker: str | None, says: str):
    _, (turn_id,) = await dead_turns(database_url)
    env = {"CELERY_BROKER_URL": f"redis://127.0.0.1:{free_port()}"} if broker else {}

    done = turnline("redrive", str(turn_id), "--from-scratch", "--by", "Grace", **env)

    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    assert "begins from its messages again" in done.stdout
    content = fetch_value(database_url, "SELECT content FROM events WHERE turn_id = %s AND content->>'status' = 'redriven'", turn_id)
    assert content == {"status": "redriven", "from_scratch": True, "by": "Grace"}


async def test_a_quarantined_session_is_released(turnline: Turnline, database_url: str):
    made, _ = await dead_turns(database_url, 3)
    session_id = str(made.session_id)
    assert fetch_value(database_url, "SELECT quarantined_at FROM sessions WHERE id = %s", made.session_id) is not None

    done = turnline("release", session_id)

    assert (done.returncode, f"The session {session_id} goes on." in done.stdout) == (0, True), done.stderr
    assert fetch_value(database_url, "SELECT quarantined_at FROM sessions WHERE id = %s", made.session_id) is None
    assert "is not quarantined" in turnline("release", session_id).stdout
    for command in ("redrive", "release"):
        unknown = turnline(command, str(uuid4()))
        assert (unknown.returncode, "There is no " in unknown.stderr) == (1, True)
