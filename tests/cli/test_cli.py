"""`turnline` as a process: help, errors, and the commands that have no test module of their own."""

import json
import subprocess
import sys
import uuid
from functools import partial

import psycopg
import pytest

from cli.main import SECTIONS
from tests.support.cli import turnline as run_turnline
from tests.support.servers import ROOT, SECRET_KEY, free_port, process_env


@pytest.fixture
def turnline(tmp_path):
    return partial(run_turnline, directory=tmp_path)


def test_help_lists_every_command(turnline):
    result = turnline("--help")
    assert result.returncode == 0
    for command in ("up", "demo", "migrate", "worker", "sandbox", "doctor", "workspace", "turns", "turn", "audit", "jobs", "erase"):
        assert f"\n  {command} " in result.stdout


def test_listed_summaries_are_the_first_lines_of_each_commands_help():
    for commands in SECTIONS.values():
        for name, command in commands.items():
            assert (command.load().help or "").splitlines()[0] == command.summary, name


def test_help_does_not_import_command_modules():
    program = "import sys; from cli.main import main; main(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], env=process_env(), cwd=ROOT, capture_output=True, text=True, check=True)
    assert not any(f"'{module}'" in result.stdout for module in ("celery", "sqlalchemy", "psycopg", "rich", "cli.turns"))


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (["worker"], {}, "DATABASE_URL and CELERY_BROKER_URL are not set"),
        (["migrate"], {}, "DATABASE_URL is not set"),
        (["migrate"], {"DATABASE_URL": "mysql://root:hunter2@db/x"}, "The setting DATABASE_URL cannot be used: must be a Postgres URL"),
        (["migrate"], {"DATABASE_URL": "postgresql://me:hunter2@127.0.0.1:1/x"}, "127.0.0.1:1/x could not be migrated"),
        (["up"], {"TURNLINE_API_PORT": "many"}, "The setting TURNLINE_API_PORT cannot be used"),
        (["flower"], {"CELERY_BROKER_URL": "redis://127.0.0.1:1"}, "does not run without a password"),
        (["turns"], {"DATABASE_URL": "postgresql://me:hunter2@127.0.0.1:1/x"}, "The database 127.0.0.1:1/x does not answer"),
        (["turn", "seven"], {}, "is not a valid UUID"),
        (["nonsense"], {}, "No such command"),
    ],
)
def test_user_errors_exit_with_a_sentence(turnline, arguments, env, message):
    done = turnline(*arguments, **env)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_migrate_upgrades_an_empty_database_to_the_latest_revision(turnline, empty_database_url):
    first = turnline("migrate", DATABASE_URL=empty_database_url)
    assert "it was at none." in first.stdout
    assert turnline("migrate", DATABASE_URL=empty_database_url).stdout.count("is at revision") == 1


def test_doctor_names_every_missing_setting(turnline):
    done = turnline("doctor")
    assert done.returncode == 1
    for name in ("DATABASE_URL", "CELERY_BROKER_URL", "TURNLINE_SECRET_KEYS", "OPENAI_API_KEY", "TURNLINE_FLOWER_BASIC_AUTH"):
        assert name in done.stdout


def test_doctor_reports_working_and_broken_parts(turnline, empty_database_url, broker_url):
    given = {
        "CELERY_BROKER_URL": broker_url,
        "TURNLINE_SECRET_KEYS": f"{SECRET_KEY},dG9vIHNob3J0",
        "OPENAI_API_KEY": "sk-secret-of-a-test",
        "REDIS_URL": f"redis://127.0.0.1:{free_port()}",
        "TURNLINE_FLOWER_BASIC_AUTH": "me:hunter2",
    }
    done = turnline("doctor", DATABASE_URL=empty_database_url, **given)
    wrong = [line for line in done.stdout.splitlines() if line.startswith("WRONG")]
    for message in ("Run `turnline migrate`", "key 2 is not 32 bytes", "REDIS_URL"):
        assert any(message in line for line in wrong), message
    assert "The model provider is api.openai.com, with a key." in done.stdout
    assert "hunter2" not in done.stdout
    assert "secret-of-a-test" not in done.stdout


@pytest.fixture
def turn_id(database_url):
    """A queued turn that was dispatched a minute ago and has not been claimed."""
    workspace, session, turn = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    with psycopg.connect(database_url) as db:
        db.execute("INSERT INTO workspaces (id, name) VALUES (%s, 'w')", (workspace,))
        agent = uuid.uuid4()
        db.execute("INSERT INTO agents (id, workspace_id, name) VALUES (%s, %s, 'a')", (agent, workspace))
        db.execute("INSERT INTO sessions (id, workspace_id, agent_id) VALUES (%s, %s, %s)", (session, workspace, agent))
        db.execute(
            "INSERT INTO turns (id, workspace_id, session_id, opened_at_offset, opened_at, dispatched_at)"
            " VALUES (%s, %s, %s, 0, now() - interval '1 minute', now() - interval '1 minute')",
            (turn, workspace, session),
        )
    return str(turn)


def test_turns_lists_stuck_turns(turnline, database_url, turn_id):
    for arguments in (["turns"], ["turns", "--stuck"], ["turn", turn_id]):
        done = turnline(*arguments, DATABASE_URL=database_url)
        assert done.returncode == 0, done.stderr
        assert turn_id in done.stdout
    with psycopg.connect(database_url) as db:
        db.execute("UPDATE turns SET status = 'done' WHERE id = %s", (turn_id,))
    assert turn_id not in turnline("turns", "--stuck", DATABASE_URL=database_url).stdout
    unknown = turnline("turn", str(uuid.uuid4()), DATABASE_URL=database_url)
    assert unknown.returncode == 1
    assert "There is no turn" in unknown.stderr


def test_workspace_create_returns_its_first_key(turnline, database_url, empty_database_url):
    created = json.loads(turnline("workspace", "create", "Acme", "--json", DATABASE_URL=database_url).stdout)
    assert created["api_key"].startswith("tl_")
    with psycopg.connect(database_url) as db:
        assert db.execute("SELECT name FROM workspaces WHERE id = %s", (created["workspace_id"],)).fetchone() == ("Acme",)
    nameless = turnline("workspace", "create", " ", DATABASE_URL=database_url)
    assert (nameless.returncode, "1 to 100 characters" in nameless.stderr) == (1, True)
    unmigrated = turnline("workspace", "create", "Acme", DATABASE_URL=empty_database_url)
    assert (unmigrated.returncode, "Run `turnline migrate`" in unmigrated.stderr) == (1, True), unmigrated.stderr
