"""Every job on real data: an hour late, run again, killed in its middle, two copies at once. As processes, by hand.

The middle is made by a trigger that lets a statement of the job wait for a lock of the test's.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import redis

from store.database import Database
from tasks.jobs import all_jobs
from tests.support.fork_server import Child, fork_server
from tests.support.servers import SECRET_KEY, Databases, process_env, until
from tests.system.jobs.job_fixtures import SCENES, Place, Scene

HINDER = """
CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN IF %(which)s THEN PERFORM pg_advisory_xact_lock_shared(4242); END IF; RETURN NEW; END $$;
CREATE TRIGGER dawdle BEFORE %(on)s ON %(table)s FOR EACH ROW EXECUTE FUNCTION dawdle()
"""
WAITING = """SELECT count(*) FROM pg_locks
WHERE locktype = 'advisory' AND objid = 4242 AND NOT granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
AT_WORK = "SELECT count(*) FROM job_runs WHERE job = %s"

scenes = pytest.mark.parametrize("scene", SCENES, ids=[scene.job for scene in SCENES])


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """An HTTP server that answers whatever it is asked."""

    class Answering(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(204)
            self.end_headers()

        do_GET = do_OPTIONS = do_HEAD

        def log_message(self, *_: Any) -> None:
            """Nothing to say."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
async def place(databases: Databases, broker_url: str, address: str, scene: Scene) -> AsyncIterator[Place]:
    """The scene with everything made, an hour late."""

    def rings() -> set[str]:
        with redis.Redis.from_url(broker_url) as broker:
            sent = [json.loads(one)["headers"]["id"] for one in broker.lrange("turns", 0, -1)]
        return {one.split(":")[1] for one in sent}

    url = databases.migrated()
    database = Database(url, pool_size=4)
    await database.open()
    here = Place(database, url, address, rings)
    await scene.make(here)
    await database.close()
    yield here
    databases.drop(url)


@pytest.fixture
def environment(place: Place, broker_url: str, scene: Scene) -> dict[str, str]:
    settings = {"DATABASE_URL": place.database_url, "CELERY_BROKER_URL": broker_url, "TURNLINE_SECRET_KEYS": SECRET_KEY}
    return process_env(**(settings | scene.env))


@pytest.fixture
def hindrance(place: Place, scene: Scene) -> Iterator[contextlib.ExitStack]:
    """Who comes to the scene's middle waits there until this is closed."""
    place.do(HINDER % {"which": scene.which(place), "on": scene.on, "table": scene.table})
    with contextlib.ExitStack() as hindering:
        db = hindering.enter_context(psycopg.connect(place.database_url, autocommit=True))
        db.execute("SELECT pg_advisory_lock(4242)")
        yield hindering


def started(scene: Scene, environment: dict[str, str]) -> Child:
    return fork_server().start(("-m", "cli.main", "jobs", "run", scene.job, "--json"), environment)


def ended(process: Child) -> dict[str, int]:
    """What the run says it did."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    counts: dict[str, int] = json.loads(out.strip().splitlines()[-1])["counts"]
    return counts


def in_the_middle(place: Place) -> bool:
    return bool(place.one(WAITING))


def test_every_job_has_a_scene():
    assert sorted(scene.job for scene in SCENES) == sorted(all_jobs())


@scenes
def test_an_hour_late_it_catches_up_and_run_again_it_changes_nothing(scene: Scene, place: Place, environment: dict[str, str]):
    assert scene.seen(place) != scene.due(place)

    did = ended(started(scene, environment))
    first = scene.seen(place)
    again = ended(started(scene, environment))

    assert first == scene.due(place)
    assert scene.seen(place) == first
    name, count = scene.counted
    assert did[name] == count
    assert again.get(name, 0) == (count if scene.job == "usage.audit" else 0), "an audit looks anew; nothing else is done twice"


@scenes
def test_killed_in_the_middle_the_next_run_does_the_rest(
    scene: Scene, place: Place, environment: dict[str, str], hindrance: contextlib.ExitStack
):
    before = scene.seen(place)
    process = started(scene, environment)
    until(lambda: in_the_middle(place) and (scene.seen(place) != before or not scene.begun))
    halfway = scene.seen(place)
    process.kill()
    process.communicate()
    hindrance.close()
    until(lambda: not in_the_middle(place))

    assert halfway != scene.due(place)
    assert (halfway != before) == scene.begun
    place.do(scene.later)
    ended(started(scene, environment))

    assert scene.seen(place) == scene.due(place)
    outcomes = "SELECT array_agg(finished_at IS NOT NULL ORDER BY id) FROM job_runs WHERE job = %s"
    assert place.one(outcomes, scene.job) == [False, True]


@scenes
def test_two_copies_at_once_do_it_once(scene: Scene, place: Place, environment: dict[str, str], hindrance: contextlib.ExitStack):
    two = [started(scene, environment) for _ in range(2)]
    until(lambda: place.one(AT_WORK, scene.job) == 2 and in_the_middle(place))
    hindrance.close()
    did = [ended(process) for process in two]

    assert scene.seen(place) == scene.due(place)
    name, count = scene.counted
    in_all = sum(counts.get(name, 0) for counts in did)
    assert in_all == (2 * count if scene.job == "usage.audit" else count)
