"""`turnline doctor`: check an installation, and print what is wrong and what to do."""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

import click
import psycopg
import pydantic
import redis
from kombu.connection import Connection
from redis.backoff import NoBackoff
from redis.retry import Retry

from beat_schedule import SCHEDULE
from cli.database import maintenance_url, safe_url
from cli.settings_errors import describe_settings_error
from cli.standalone.data_dir import DataDir
from settings import Settings
from store import migrate
from store.database import APP_ROLE, MAINTENANCE_ROLE, connect_arguments
from tasks.celery_app import make_app

ROLES = ("turnline_owner", "turnline_app", "turnline_maintenance")
_PING_TIMEOUT_S = 2.0
MAX_AUDIT_AGE = timedelta(days=2)
_MIN_LATE_S = 600.0  # a job is late after ten times its interval, and at least this long
_STALLED = "SELECT name, stalls, now() - stalled_at FROM workers WHERE stalled_at > now() - interval '1 day' ORDER BY name"
_LAST_AUDIT = """
SELECT now() - started_at, (SELECT coalesce(sum((found->>'count')::bigint), 0) FROM jsonb_each(violations) AS v (name, found))
FROM audits WHERE finished_at IS NOT NULL AND error IS NULL ORDER BY id DESC LIMIT 1
"""
# For a job that has never succeeded, time is counted from the oldest turn.
_LATE_JOBS = """
SELECT scheduled.job, now() - last.finished_at FROM unnest(%s::text[], %s::float8[]) AS scheduled (job, within_s)
LEFT JOIN LATERAL (SELECT finished_at FROM job_runs r WHERE r.job = scheduled.job AND finished_at IS NOT NULL AND error IS NULL
                       AND NOT dry_run ORDER BY id DESC LIMIT 1) last ON true
WHERE coalesce(last.finished_at, (SELECT opened_at FROM turns ORDER BY id LIMIT 1)) < now() - make_interval(secs => within_s)
ORDER BY 1
"""


@dataclass(frozen=True)
class Finding:
    """The result of one check, as sentences."""

    ok: bool
    text: str


@click.command()
def doctor() -> None:
    """Check this installation and print what is wrong and what to do.

    Checks settings, database, schema, broker, workers, scheduled jobs and audits. Exits with 1 if anything is wrong.
    """
    findings = run_checks(os.environ)
    for finding in findings:
        click.echo(f"{'ok     ' if finding.ok else 'WRONG  '}{finding.text}")
    wrong = sum(not finding.ok for finding in findings)
    click.echo(f"\n{wrong} problem{'s' if wrong > 1 else ''} to fix." if wrong else "\nNothing is wrong.")
    sys.exit(1 if wrong else 0)


def run_checks(environ: Mapping[str, str]) -> list[Finding]:
    """Run every check independently, so that one failure hides no other. `environ` is only read for Flower's own variables."""
    found = [_python()]
    try:
        settings = Settings()
    except pydantic.ValidationError as error:
        return [*found, Finding(False, describe_settings_error(error))]
    data_dir = DataDir(settings.home)
    complete = data_dir.complete(settings)
    found += _database(complete)
    found += _broker(complete)
    found += _secret_keys(complete)
    found += _provider(complete)
    found += _flower(complete, environ)
    if complete.database_url != settings.database_url and any(not finding.ok for finding in found):
        text = f"DATABASE_URL is not set, so the servers of `turnline up` in {data_dir.path} are used. Is it running?"
        found.append(Finding(True, text))
    return found


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    new_enough = tuple(sys.version_info) >= (3, 11)
    return Finding(new_enough, f"Python is {version}" + ("." if new_enough else "; 3.11 or newer is needed."))


def _database(settings: Settings) -> Iterator[Finding]:
    url = settings.database_url
    if not url:
        yield Finding(False, "DATABASE_URL is not set. Set it, or use `turnline up`, which runs its own Postgres.")
        return
    try:
        with psycopg.connect(url, connect_timeout=5) as db:
            version = db.info.server_version // 10000
            roles = {name for (name,) in db.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", (list(ROLES),))}
            may = db.execute(
                "SELECT rolname FROM pg_roles WHERE rolname = 'turnline_app' AND pg_has_role(current_user, rolname, 'SET')"
            ).fetchone()
    except psycopg.Error as error:
        yield Finding(False, f"The database {safe_url(url)} (DATABASE_URL) refused the connection: {str(error).strip()}")
        return
    yield Finding(
        version >= 18, f"The database {safe_url(url)} answers; it is PostgreSQL {version}." + ("" if version >= 18 else " 18 is needed.")
    )
    missing = [role for role in ROLES if role not in roles]
    if missing:
        yield Finding(False, f"The database has no role {', '.join(missing)}. Run `turnline migrate` as a login that may create roles.")
        return
    if may is None:
        login = urlsplit(url).username
        yield Finding(False, f"The login {login} may not become turnline_app. An administrator must run: GRANT turnline_app TO {login}.")
        return
    yield Finding(True, "The three roles exist, and the login may become turnline_app.")
    schema = _schema(url)
    yield schema
    if schema.ok:
        yield from _maintenance(maintenance_url(settings))


def _schema(url: str) -> Finding:
    # As the application's role: the login may not inherit its privileges.
    current, head = migrate.current(url, **connect_arguments(APP_ROLE, "turnline-doctor")), migrate.head()
    if current == head:
        return Finding(True, f"The schema is at the latest revision, {head}.")
    return Finding(False, f"The schema is at revision {current or 'none'}, the latest is {head}. Run `turnline migrate`.")


def _maintenance(url: str) -> Iterator[Finding]:
    """Check the last audit, the scheduled jobs and the workers' watchdogs."""
    try:
        with psycopg.connect(url, **connect_arguments(MAINTENANCE_ROLE, "turnline-doctor")) as db:
            yield from (_audit(db), _jobs(db), *_stalls(db))
    except psycopg.Error as error:
        yield Finding(False, f"The audits and jobs cannot be read as turnline_maintenance: {str(error).strip()}")


def _audit(db: psycopg.Connection) -> Finding:
    first = db.execute("SELECT now() - opened_at FROM turns ORDER BY id LIMIT 1").fetchone()
    last = db.execute(_LAST_AUDIT).fetchone()
    if last is not None and last[1]:
        return Finding(False, f"The last audit, {_ago(last[0])}, found violations ({last[1]}). `turnline audit --last` shows them.")
    age: timedelta = (last or first or (timedelta(0),))[0]
    if first is not None and age > MAX_AUDIT_AGE:
        latest = f"The last audit was {_ago(age)}" if last is not None else "There has been no audit"
        return Finding(False, f"{latest}; the scheduler runs one every day. Do beat and the maintenance worker run?")
    if last is None:
        return Finding(True, "There has been no audit yet; the scheduler runs one every day.")
    return Finding(True, f"The last audit, {_ago(last[0])}, found no violations.")


def _jobs(db: psycopg.Connection) -> Finding:
    limits = {
        str(entry["task"]): max(_MIN_LATE_S, 10.0 * float(str(entry["schedule"]))) for name, entry in SCHEDULE.items() if name != "audit"
    }
    late = db.execute(_LATE_JOBS, (list(limits), list(limits.values()))).fetchall()
    if not late:
        return Finding(True, "No scheduled job is late.")
    listed = ", ".join(f"{job} (last {_ago(age)})" if age is not None else f"{job} (never)" for job, age in late)
    advice = "Do beat and the maintenance worker run? `turnline jobs runs --failed` says more."
    return Finding(False, f"Scheduled jobs have not succeeded for too long: {listed}. {advice}")


def _stalls(db: psycopg.Connection) -> Iterator[Finding]:
    for name, stalls, age in db.execute(_STALLED).fetchall():
        times = f"{stalls} times in all, last" if stalls > 1 else "once,"
        yield Finding(
            False, f"The worker {name} stalled and was ended by its watchdog ({times} {_ago(age)}). Its log shows what it was doing."
        )


def _ago(age: timedelta) -> str:
    hours = max(0, int(age.total_seconds() // 3600))
    if hours >= 48:
        return f"{hours // 24} days ago"
    return f"{hours} hours ago" if hours >= 2 else f"{int(age.total_seconds() // 60)} minutes ago"


def _broker(settings: Settings) -> Iterator[Finding]:
    url = settings.broker_url
    if not url:
        yield Finding(False, "CELERY_BROKER_URL is not set. Set it, or use `turnline up`, which runs its own Valkey.")
        return
    broker = _redis("CELERY_BROKER_URL", url) if url.startswith(("redis://", "rediss://")) else _other_broker(url)
    yield broker
    if settings.redis_url and settings.redis_url != url:
        yield _redis("REDIS_URL", settings.redis_url)
    elif not settings.realtime_url:
        yield Finding(False, "REDIS_URL is not set, and the broker is not Redis: replies are late and not streamed. Set REDIS_URL.")
    if broker.ok:
        yield _worker(settings)


def _redis(variable: str, url: str) -> Finding:
    try:
        with redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0)) as client:
            client.ping()
            policy = _policy(client)
    except (redis.RedisError, ValueError) as error:
        return Finding(False, f"{variable}: {safe_url(url)} refused the connection: {error}")
    if policy not in ("", "noeviction"):
        return Finding(False, f"{variable}: {safe_url(url)} answers, but may evict messages (maxmemory-policy {policy}). Set noeviction.")
    return Finding(True, f"{variable}: {safe_url(url)} answers.")


def _policy(client: redis.Redis) -> str:
    with contextlib.suppress(redis.RedisError):  # a managed Redis may refuse CONFIG
        return str(dict(client.config_get("maxmemory-policy")).get("maxmemory-policy", ""))
    return ""


def _other_broker(url: str) -> Finding:
    try:
        with Connection(url, connect_timeout=5) as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
    except Exception as error:  # noqa: BLE001 - every transport has its own errors
        return Finding(False, f"CELERY_BROKER_URL: {safe_url(url)} refused the connection: {error}")
    return Finding(True, f"CELERY_BROKER_URL: {safe_url(url)} answers.")


def _worker(settings: Settings) -> Finding:
    replies = make_app(settings).control.ping(timeout=_PING_TIMEOUT_S)
    names = sorted(name for reply in replies for name in reply)
    if names:
        return Finding(True, f"Workers answer: {', '.join(names)}.")
    return Finding(False, f"No worker answered in {_PING_TIMEOUT_S:.0f} s. Start `turnline worker` and `turnline worker --maintenance`.")


def _secret_keys(settings: Settings) -> Iterator[Finding]:
    keys = [key for key in settings.secret_keys.get_secret_value().split(",") if key.strip()]
    if not keys:
        yield Finding(False, "TURNLINE_SECRET_KEYS is not set, so tool secrets cannot be stored. `openssl rand -base64 32` makes a key.")
        return
    bad = [str(number) for number, key in enumerate(keys, 1) if _length(key) != 32]
    if bad:
        yield Finding(False, f"TURNLINE_SECRET_KEYS: key {', '.join(bad)} is not 32 bytes in base64. `openssl rand -base64 32` makes one.")
    else:
        yield Finding(True, f"TURNLINE_SECRET_KEYS contains {len(keys)} valid key{'s' if len(keys) > 1 else ''}.")


def _length(key: str) -> int:
    with contextlib.suppress(binascii.Error, ValueError):
        return len(base64.b64decode(key.strip(), validate=True))
    return -1


def _provider(settings: Settings) -> Iterator[Finding]:
    host = urlsplit(settings.openai_base_url).hostname or ""
    if settings.openai_api_key.get_secret_value():
        yield Finding(True, f"The model provider is {host}, with a key.")
    elif host in ("localhost", "::1") or host.startswith("127."):
        yield Finding(True, f"The model provider is {host}, without a key.")
    else:
        yield Finding(False, f"OPENAI_API_KEY is not set, and the model provider is {host}. Set the key, or OPENAI_BASE_URL.")


def _flower(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    auth = settings.flower_basic_auth.get_secret_value() or environ.get("FLOWER_BASIC_AUTH") or environ.get("FLOWER_AUTH")
    if environ.get("FLOWER_UNAUTHENTICATED_API"):
        yield Finding(False, "FLOWER_UNAUTHENTICATED_API opens Flower's API to everyone who can reach it. Unset it.")
    if auth:
        yield Finding(True, "Flower has a password.")
    else:
        yield Finding(False, "Flower has no password, so `turnline flower` will not start. Set TURNLINE_FLOWER_BASIC_AUTH=user:password.")
