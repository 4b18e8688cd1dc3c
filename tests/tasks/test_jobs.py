"""`turnline jobs` as a process, and the row that every run of a job leaves."""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from beat_schedule import SCHEDULE
from cli.doctor import run_checks
from cli.standalone import commands
from settings import Settings
from store.conversations import intake
from store.database import Database
from store.operations import job_runs
from tasks import jobs
from tasks.celery_app import app
from tests.support.cli import Turnline
from tests.support.cli import turnline as run_cli
from tests.support.factories import tenant
from tests.support.servers import Databases, EmbeddedValkey, process_env, until


@pytest.fixture
def turnline(tmp_path: Path, database_url: str, valkey: EmbeddedValkey) -> Turnline:
    """Runs `turnline jobs` on the module's servers."""
    return partial(run_cli, "jobs", directory=tmp_path, DATABASE_URL=database_url, CELERY_BROKER_URL=valkey.url)


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings(_env_file=None, DATABASE_URL=database_url)


async def undispatched_turn(database_url: str) -> None:
    """Accept a message whose turn was opened a minute ago and never dispatched."""
    database = Database(database_url, pool_size=2)
    await database.open()
    made = await tenant(database)
    await intake.accept(database, made.workspace_id, made.session_id, "Is order 41 paid?")
    await database.close()
    with psycopg.connect(database_url) as db:
        db.execute("UPDATE turns SET opened_at = opened_at - interval '1 minute', dispatched_at = NULL WHERE status = 'queued'")


def test_every_scheduled_task_is_a_job():
    known = jobs.all_jobs()

    assert {entry["task"] for entry in SCHEDULE.values()} <= set(known) & set(app.tasks)
    assert all(one.summary.endswith(".") for one in known.values())


async def test_job_run_by_hand_prints_its_counts_and_leaves_a_row(turnline: Turnline, database_url: str):
    await undispatched_turn(database_url)

    would = turnline("run", "turns.sweep", "--dry-run")
    did = turnline("run", "turns.sweep", "--json")
    again = turnline("run", "turns.sweep")
    runs = json.loads(turnline("runs", "turns.sweep", "--json").stdout)["runs"]

    assert "turns.sweep: would have done: 1 turns dispatched." in would.stdout, would.stderr
    assert json.loads(did.stdout)["counts"] == {"turns_dispatched": 1}
    assert "turns.sweep: done: nothing to do." in again.stdout
    assert [(run["state"], run["dry_run"], run["counts"]) for run in runs] == [
        ("done", False, {}),
        ("done", False, {"turns_dispatched": 1}),
        ("done", True, {"turns_dispatched": 1}),
    ]
    assert all(run["asked_by"].startswith("operator") for run in runs)


def test_list_shows_last_run_and_cadence(turnline: Turnline):
    assert turnline("run", "usage.audit").returncode == 0

    listed = turnline("list")
    jobs_by_name = {one["name"]: one for one in json.loads(turnline("list", "--json").stdout)["jobs"]}

    assert "usage.audit" in listed.stdout
    assert jobs_by_name["usage.audit"]["last_run"]["state"] == "done"
    assert jobs_by_name["turns.sweep"]["every_s"] == 5.0


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        (["run", "turns.swep"], {}, "There is no job 'turns.swep'. The jobs are: "),
        (["runs", "nonsense"], {}, "There is no job 'nonsense'"),
        (["run", "turns.sweep"], {"DATABASE_URL": "postgresql://me:hunter2@127.0.0.1:1/x"}, "The database 127.0.0.1:1/x does not answer"),
        (["run", "turns.sweep"], {"CELERY_BROKER_URL": ""}, "CELERY_BROKER_URL is not set"),
    ],
)
def test_mistake_is_reported_without_a_traceback(turnline: Turnline, arguments: list[str], env: dict[str, str], words: str):
    done = turnline(*arguments, **env)

    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


async def test_failed_run_keeps_its_counts_and_says_where_it_failed(maintenance: Database, settings: Settings):
    async def fails(run: jobs.JobRun) -> None:
        run.count(rows_deleted=3)
        raise ValueError("the words of a customer")

    with pytest.raises(jobs.JobFailed, match=r"ValueError at test_jobs\.py"):
        await jobs.run(jobs.Job("tests.fails", "Fails.", fails), settings=settings)

    (row,) = await job_runs.latest(maintenance, "tests.fails", only_bad=True)
    assert (row["state"], row["counts"]) == ("failed", {"rows_deleted": 3})
    assert "customer" not in row["error"]


async def test_killed_run_is_shown_as_cut_off_with_its_counts(maintenance: Database, database_url: str):
    program = f"""
import asyncio
from settings import Settings
from tasks import jobs
jobs.SEEN_EVERY_S = 0.1
async def long(run):
    run.count(rows_deleted=7)
    await asyncio.sleep(600)
asyncio.run(jobs.run(jobs.Job("tests.long", "Is long.", long), settings=Settings(_env_file=None, DATABASE_URL={database_url!r})))
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=process_env())

    def rows() -> list[Any]:
        with psycopg.connect(database_url) as db:
            return db.execute("SELECT counts FROM job_runs WHERE job = 'tests.long'").fetchall()

    await asyncio.to_thread(until, lambda: rows() == [({"rows_deleted": 7},)], 20)
    process.kill()
    await process.wait()

    assert [row["state"] for row in await job_runs.latest(maintenance, "tests.long")] == ["running"]
    with psycopg.connect(database_url) as db:
        db.execute("UPDATE job_runs SET seen_at = seen_at - interval '5 minutes' WHERE job = 'tests.long'")
    assert [row["state"] for row in await job_runs.latest(maintenance, "tests.long", only_bad=True)] == ["cut off"]


async def test_old_runs_are_deleted_and_failed_ones_later(maintenance: Database, database_url: str):
    with psycopg.connect(database_url) as db:
        db.execute(
            "INSERT INTO job_runs (job, asked_by, finished_at, error) SELECT 'tests.often', 'schedule',"
            " CASE WHEN n <> 2 THEN now() END, CASE WHEN n = 1 THEN 'it broke' END FROM generate_series(1, %s) n",
            [job_runs.KEPT + 20],
        )
    await job_runs.begin(maintenance, "tests.often", asked_by="schedule", dry_run=False)

    rows = await job_runs.latest(maintenance, "tests.often", limit=1000)
    assert len(rows) == job_runs.KEPT + 3, "one failed, one was killed"
    assert [row["error"] for row in rows if row["error"]] == ["it broke"]


async def test_doctor_names_jobs_without_a_recent_success(databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    database_url = databases.migrated()
    await undispatched_turn(database_url)
    for name, value in process_env(DATABASE_URL=database_url, TURNLINE_HOME=str(tmp_path)).items():
        monkeypatch.setenv(name, value)

    def job_finding() -> tuple[bool, str]:
        return next((found.ok, found.text) for found in run_checks({}) if "scheduled job" in found.text.lower())

    with psycopg.connect(database_url, autocommit=True) as db:
        assert job_finding() == (True, "No scheduled job is late."), "a new installation has had no time to run them"
        db.execute("UPDATE turns SET opened_at = now() - interval '2 days'")
        ok, text = job_finding()
        assert (ok, "turns.sweep (never)" in text, "usage.audit" in text) == (False, True, False)

        for job in {str(entry["task"]) for entry in SCHEDULE.values()}:
            db.execute("INSERT INTO job_runs (job, asked_by, finished_at) VALUES (%s, 'schedule', now() - interval '9 minutes')", [job])
        assert job_finding() == (True, "No scheduled job is late.")
        db.execute("UPDATE job_runs SET finished_at = now() - interval '3 hours' WHERE job = 'turns.sweep'")
        db.execute("INSERT INTO job_runs (job, asked_by, finished_at, error) VALUES ('turns.sweep', 'schedule', now(), 'OSError')")
        ok, text = job_finding()
        assert (ok, text.startswith("Scheduled jobs have not succeeded for too long: turns.sweep (last 3 hours ago).")) == (False, True)
    databases.drop(database_url)


async def test_scheduled_job_runs_once_at_a_time(maintenance: Database, database_url: str, settings: Settings):
    """Copies of a long job must not fill the maintenance worker. A killed run blocks the next one for 20 s only."""
    begun = await asyncio.gather(
        *(job_runs.begin(maintenance, "tests.alone", asked_by="schedule", dry_run=False, alone=True) for _ in range(8))
    )
    assert sum(run_id is not None for run_id in begun) == 1

    done = list[bool]()

    async def note(run: jobs.JobRun) -> None:
        done.append(run.by_hand)

    alone = jobs.Job("tests.alone", "Runs alone.", note)
    with pytest.raises(jobs.UnderWay):
        await jobs.run(alone, settings=settings)
    await jobs.run(jobs.Job("tests.alone", "May run several times at once.", note, alone=False), settings=settings)
    await jobs.run(alone, settings=settings, asked_by="operator")
    assert done == [False, True]
    with psycopg.connect(database_url) as db:
        db.execute("UPDATE job_runs SET seen_at = seen_at - interval '21 seconds' WHERE job = 'tests.alone' AND finished_at IS NULL")
    await jobs.run(alone, settings=settings)
    assert done == [False, True, False]


def test_maintenance_worker_can_run_every_scheduled_job_at_once():
    command = commands.maintenance()
    assert int(command[command.index("-c") + 1]) >= len({entry["task"] for entry in SCHEDULE.values()})


def test_doctor_reports_missing_database_rights(databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    database_url = databases.migrated()
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute("CREATE ROLE only_an_app LOGIN NOINHERIT PASSWORD 'only' IN ROLE turnline_app")
    parts = urlsplit(database_url)
    login = parts._replace(netloc=f"only_an_app:only@{parts.hostname}:{parts.port}").geturl()
    for name, value in process_env(DATABASE_URL=login, TURNLINE_HOME=str(tmp_path)).items():
        monkeypatch.setenv(name, value)
    try:
        wrong = [found.text for found in run_checks({}) if not found.ok]
    finally:
        with psycopg.connect(database_url, autocommit=True) as db:
            db.execute("DROP ROLE only_an_app")
        databases.drop(database_url)

    assert any(text.startswith("The audits and jobs cannot be read as turnline_maintenance:") for text in wrong), wrong
