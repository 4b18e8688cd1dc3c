"""`turnline doctor`: what is missing or unreachable, in sentences, and what to do about it."""

from __future__ import annotations

import base64
import binascii
import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

import psycopg
import pydantic
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from beat_schedule import SCHEDULE
from cli.database import safe_url
from cli.settings_errors import describe_settings_error
from cli.standalone.data_dir import DataDir
from settings import Settings
from store import migrate
from store.database import APP_ROLE, MAINTENANCE_ROLE, connect_arguments

ROLES = ("turnline_owner", "turnline_app", "turnline_maintenance")
_PING_S = 2.0
AUDIT_STALE = timedelta(days=2)
_LATE_S = 600.0  # and ten times a job's cadence
_STALLED = "SELECT name, stalls, now() - stalled_at FROM workers WHERE stalled_at > now() - interval '1 day' ORDER BY name"
_LAST_AUDIT = """
SELECT now() - started_at, (SELECT coalesce(sum((found->>'count')::bigint), 0) FROM jsonb_each(violations) AS v (name, found))
FROM audits WHERE finished_at IS NOT NULL AND error IS NULL ORDER BY id DESC LIMIT 1
"""
# Of a job that has never ended well, its time is counted from the oldest turn.
_LATE_JOBS = """
SELECT scheduled.job, now() - last.finished_at FROM unnest(%s::text[], %s::float8[]) AS scheduled (job, within_s)
LEFT JOIN LATERAL (SELECT finished_at FROM job_runs r WHERE r.job = scheduled.job AND finished_at IS NOT NULL AND error IS NULL
                       AND NOT dry_run ORDER BY id DESC LIMIT 1) last ON true
WHERE coalesce(last.finished_at, (SELECT opened_at FROM turns ORDER BY id LIMIT 1)) < now() - make_interval(secs => within_s)
ORDER BY 1
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    ok: bool
    text: str


def examine(environ: Mapping[str, str]) -> list[Finding]:
    """Look at everything a deployment needs, each on its own, so that one fault hides no other."""
    found = [_python()]
    try:
        settings = Settings()
    except pydantic.ValidationError as error:
        return [*found, Finding(False, describe_settings_error(error))]
    home = DataDir(settings.home)
    own = home.completed(settings)
    found += _database(own)
    found += _broker(own)
    found += _secret_keys(own)
    found += _provider(own)
    found += _flower(own, environ)
    if own.database_url != settings.database_url and any(not finding.ok for finding in found):
        found.append(Finding(True, f"Where nothing else is set, what `turnline up` made in {home.path} is used. Is it running?"))
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
        yield Finding(False, f"The database {safe_url(url)} (DATABASE_URL) does not let us in: {str(error).strip()}")
        return
    yield Finding(
        version >= 18, f"The database {safe_url(url)} answers; it is PostgreSQL {version}." + ("" if version >= 18 else " 18 is needed.")
    )
    missing = [role for role in ROLES if role not in roles]
    if missing:
        yield Finding(False, f"The database has no role {', '.join(missing)}. Run `turnline migrate` as a login that may create roles.")
        return
    elif may is None:
        login = urlsplit(url).username
        yield Finding(False, f"The login {login} may not become turnline_app. Let an administrator run: GRANT turnline_app TO {login}.")
        return
    yield Finding(True, "The three roles exist, and the login may become turnline_app.")
    schema = _schema(url)
    yield schema
    if schema.ok:
        yield from _maintenance(settings.maintenance_database_url or url)


def _schema(url: str) -> Finding:
    # As the application: a login need not inherit what its roles may do.
    current, head = migrate.current(url, **connect_arguments(APP_ROLE, "turnline-doctor")), migrate.head()
    if current == head:
        return Finding(True, f"The schema is at the newest revision, {head}.")
    return Finding(False, f"The schema is at revision {current or 'none'}, the newest is {head}. Run `turnline migrate`.")


def _maintenance(url: str) -> Iterator[Finding]:
    """How the books, the jobs and the workers have fared of late."""
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
    if first is not None and age > AUDIT_STALE:
        so_far = f"The last audit was {_ago(age)}" if last is not None else "There has been no audit"
        return Finding(False, f"{so_far}; the scheduler makes one every day. Do beat and the maintenance worker run?")
    if last is None:
        return Finding(True, "There has been no audit yet; the scheduler makes one every day.")
    return Finding(True, f"The last audit, {_ago(last[0])}, found no violations.")


def _jobs(db: psycopg.Connection) -> Finding:
    within = {str(entry["task"]): max(_LATE_S, 10.0 * float(str(entry["schedule"]))) for name, entry in SCHEDULE.items() if name != "audit"}
    late = db.execute(_LATE_JOBS, (list(within), list(within.values()))).fetchall()
    if not late:
        return Finding(True, "No scheduled job is late.")
    told = ", ".join(f"{job} (last {_ago(age)})" if age is not None else f"{job} (never)" for job, age in late)
    and_so = "Do beat and the maintenance worker run? `turnline jobs runs --failed` says more."
    return Finding(False, f"Scheduled jobs have not ended well for long: {told}. {and_so}")


def _stalls(db: psycopg.Connection) -> Iterator[Finding]:
    for name, stalls, age in db.execute(_STALLED).fetchall():
        times = f"{stalls} times so far, the last one" if stalls > 1 else "once,"
        yield Finding(False, f"The worker {name} hung and its watchdog ended it ({times} {_ago(age)}). Its log says what it was doing.")


def _ago(age: timedelta) -> str:
    hours = max(0, int(age.total_seconds() // 3600))
    return (
        f"{hours // 24} days ago"
        if hours >= 48
        else f"{hours} hours ago"
        if hours >= 2
        else f"{int(age.total_seconds() // 60)} minutes ago"
    )


def _broker(settings: Settings) -> Iterator[Finding]:
    url = settings.broker_url
    if not url:
        yield Finding(False, "CELERY_BROKER_URL is not set. Set it, or use `turnline up`, which runs its own Valkey.")
        return
    reached = _redis("CELERY_BROKER_URL", url) if url.startswith(("redis://", "rediss://")) else _other_broker(url)
    yield reached
    if settings.redis_url and settings.redis_url != url:
        yield _redis("REDIS_URL", settings.redis_url)
    elif not settings.realtime_url:
        yield Finding(False, "REDIS_URL is not set, and the broker is not Redis: clients will see replies whole and late. Set REDIS_URL.")
    if reached.ok:
        yield _worker(settings)


def _redis(variable: str, url: str) -> Finding:
    try:
        with redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0)) as client:
            client.ping()
            policy = _policy(client)
    except (redis.RedisError, ValueError) as error:
        return Finding(False, f"{variable}: {safe_url(url)} does not let us in: {error}")
    if policy not in ("", "noeviction"):
        return Finding(
            False, f"{variable}: {safe_url(url)} answers, but may throw messages away (maxmemory-policy {policy}). Set noeviction."
        )
    return Finding(True, f"{variable}: {safe_url(url)} answers.")


def _policy(client: redis.Redis) -> str:
    with contextlib.suppress(redis.RedisError):  # a managed Redis may refuse CONFIG
        return str(dict(client.config_get("maxmemory-policy")).get("maxmemory-policy", ""))
    return ""


def _other_broker(url: str) -> Finding:
    from kombu.connection import Connection

    try:
        with Connection(url, connect_timeout=5) as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
    except Exception as error:  # noqa: BLE001 - every transport has errors of its own
        return Finding(False, f"CELERY_BROKER_URL: {safe_url(url)} does not let us in: {error}")
    return Finding(True, f"CELERY_BROKER_URL: {safe_url(url)} answers.")


def _worker(settings: Settings) -> Finding:
    from tasks.celery_app import make_app

    answers = make_app(settings).control.ping(timeout=_PING_S)
    names = sorted(name for answer in answers for name in answer)
    if names:
        return Finding(True, f"Workers answer: {', '.join(names)}.")
    return Finding(False, f"No worker answered within {_PING_S:.0f} s. Start `turnline worker` and `turnline worker --maintenance`.")


def _secret_keys(settings: Settings) -> Iterator[Finding]:
    keys = [key for key in settings.secret_keys.get_secret_value().split(",") if key.strip()]
    if not keys:
        yield Finding(False, "TURNLINE_SECRET_KEYS is not set, so tools' secrets cannot be kept. `openssl rand -base64 32` makes one.")
        return
    bad = [str(number) for number, key in enumerate(keys, 1) if _length(key) != 32]
    if bad:
        yield Finding(False, f"TURNLINE_SECRET_KEYS: key {', '.join(bad)} is not 32 bytes in base64. `openssl rand -base64 32` makes one.")
    else:
        yield Finding(True, f"TURNLINE_SECRET_KEYS holds {len(keys)} usable key{'s' if len(keys) > 1 else ''}.")


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
    given = settings.flower_basic_auth.get_secret_value() or environ.get("FLOWER_BASIC_AUTH") or environ.get("FLOWER_AUTH")
    if environ.get("FLOWER_UNAUTHENTICATED_API"):
        yield Finding(False, "FLOWER_UNAUTHENTICATED_API opens Flower's API to everybody who reaches it. Unset it.")
    if given:
        yield Finding(True, "Flower has a password.")
    else:
        yield Finding(False, "Flower has no password, so `turnline flower` will not start. Set TURNLINE_FLOWER_BASIC_AUTH=user:password.")
