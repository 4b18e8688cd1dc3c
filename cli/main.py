"""`turnline`: the command line. A user's mistake ends in a sentence and exit code 1, never in a traceback."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

import click
import pydantic

from cli.errors import SetupError
from cli.settings_errors import describe_settings_error
from cli.standalone import commands
from failpoints import refuse_a_normal_start
from settings import Settings, get_settings


class _Sentences(click.Group):
    """A group whose commands' foreseeable failures are said in a sentence."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; translate what the user can do something about."""
        try:
            return super().invoke(ctx)
        except SetupError as error:
            raise click.ClickException(str(error)) from None
        except pydantic.ValidationError as error:
            if error.title != Settings.__name__:
                raise
            raise click.ClickException(describe_settings_error(error)) from None


def say(line: str) -> None:
    """Print a line now."""
    click.echo(line)
    sys.stdout.flush()


@click.group(cls=_Sentences, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option("0.1.0", prog_name="turnline")
def main() -> None:
    """Durable agent turns on Celery and Postgres.

    `turnline up` runs everything on this machine and keeps it running. `turnline doctor` says what is wrong and what to do.
    Settings are environment variables: DATABASE_URL, CELERY_BROKER_URL, REDIS_URL, OPENAI_API_KEY, OPENAI_BASE_URL, TURNLINE_*.
    """
    refuse_a_normal_start()


@main.command()
def up() -> None:
    """Run everything here: servers, API, worker, beat, Flower.

    Postgres and Valkey are embedded, with their data under .turnline/, unless DATABASE_URL and CELERY_BROKER_URL name others.
    Ctrl-C stops everything; the next `turnline up` goes on with the same data.
    """
    from cli.standalone.stack import up as run
    from cli.standalone.supervisor import Stopped

    try:
        run(get_settings(), say)
    except Stopped:
        sys.exit(130)


@main.command()
def demo() -> None:
    """Send one real message through everything, on throw-away servers, and show what happened."""
    from cli.demo import demo as run
    from cli.standalone.supervisor import Stopped

    try:
        run(get_settings())
    except Stopped:
        sys.exit(130)


@main.command()
def doctor() -> None:
    """Say what is missing or unreachable, and what to do. Exits 1 if anything is wrong."""
    from cli.doctor import examine

    findings = examine(os.environ)
    for finding in findings:
        click.echo(f"{'ok     ' if finding.ok else 'WRONG  '}{finding.text}")
    wrong = sum(not finding.ok for finding in findings)
    click.echo(f"\n{wrong} thing{'s' if wrong > 1 else ''} to put right." if wrong else "\nNothing is wrong.")
    sys.exit(1 if wrong else 0)


@main.command()
def migrate() -> None:
    """Bring the database's schema up to date (as TURNLINE_OWNER_DATABASE_URL, or DATABASE_URL)."""
    from alembic.util import CommandError
    from sqlalchemy.exc import DBAPIError

    from cli.database import safe_url
    from store import migrate as schema

    settings = needed(database=not get_settings().owner_database_url, broker=False)
    url = settings.owner_database_url or settings.database_url
    try:
        before = schema.current(url)
        schema.upgrade(url)
    except DBAPIError as error:
        raise SetupError(f"The database {safe_url(url)} could not be migrated: {str(error.orig).strip()}") from error
    except CommandError as error:
        raise SetupError(str(error)) from error
    after = schema.head()
    say(f"The database {safe_url(url)} is at revision {after}" + ("." if before == after else f"; it was at {before or 'none'}."))


@main.command()
def api() -> None:
    """Run the API (TURNLINE_API_HOST, TURNLINE_API_PORT)."""
    settings = needed()
    become(settings, commands.api(settings.api_host, settings.api_port))


@main.command()
@click.option("--concurrency", "-c", type=click.IntRange(1), help="Turns in flight at a time. Default: TURNLINE_WORKER_CONCURRENCY, 1000.")
@click.option("--name", "-n", default=None, help="Distinguishes workers of one machine. Default: turns-1, or maintenance.")
@click.option("--queues", "-Q", default=commands.TURN_QUEUES, show_default=True, help="Queues to consume.")
@click.option("--maintenance", is_flag=True, help="Run the small worker for scheduled jobs instead. One at least must run.")
def worker(concurrency: int | None, name: str | None, queues: str, maintenance: bool) -> None:
    """Run a worker. Start as many as there are cores, each with its own --name, and one with --maintenance."""
    settings = needed()
    if maintenance:
        become(settings, commands.maintenance(name or "maintenance"))
    become(settings, commands.worker(concurrency or settings.worker_concurrency, name or "turns-1", queues))


@main.command()
def beat() -> None:
    """Run the scheduler. A second one does no harm; with TURNLINE_SCHEDULER=redbeat it stands by."""
    settings = needed()
    if settings.scheduler == "redbeat" and not settings.realtime_url:
        raise SetupError("TURNLINE_SCHEDULER is redbeat, which needs Redis or Valkey: set REDIS_URL.")
    schedule = settings.home.absolute() / "beat" / "schedule"
    schedule.parent.mkdir(parents=True, exist_ok=True)
    become(settings, commands.beat(schedule))


@main.command()
def flower() -> None:
    """Run Flower behind a password (TURNLINE_FLOWER_BASIC_AUTH=user:password).

    TURNLINE_FLOWER_READ_ONLY, TURNLINE_FLOWER_URL_PREFIX and TURNLINE_FLOWER_DB say how.
    """
    settings = needed(database=False)
    auth = settings.flower_basic_auth.get_secret_value() or os.environ.get("FLOWER_BASIC_AUTH", "")
    if not auth and not os.environ.get("FLOWER_AUTH"):
        raise SetupError(
            "Flower shows and stops work, so it does not run without a password. Set TURNLINE_FLOWER_BASIC_AUTH=user:password, "
            "or FLOWER_AUTH and FLOWER_AUTH_PROVIDER for OAuth."
        )
    become(settings, commands.flower(settings), commands.flower_env(auth) if auth else {})


@main.command()
@click.option("--port", type=click.IntRange(1, 65535), default=8089, show_default=True)
def sandbox(port: int) -> None:
    """Run the stand-in model vendor and tool server on loopback."""
    become(get_settings(), commands.sandbox(port))


@main.command()
@click.argument("agent")
@click.option("--url", envvar="TURNLINE_API_URL", help="The API. Default: http://127.0.0.1:8000, or as TURNLINE_API_PORT says.")
@click.option("--api-key", envvar="TURNLINE_API_KEY", help="Default: the first key of this machine's `turnline up`.")
@click.option("--session", "session_id", help="Go on with this session instead of starting one.")
def chat(agent: str, url: str | None, api_key: str | None, session_id: str | None) -> None:
    """Talk to AGENT (its name or id) from the terminal, tokens as they come."""
    from cli.chat import chat as run

    run(get_settings(), agent, url=url, api_key=api_key, session_id=session_id)


@main.command()
@click.argument("agent", required=False)
@click.option("--from", "first", metavar="DAY", help="The first day, like 2026-11-01. Default: thirty days in all.")
@click.option("--to", "last", metavar="DAY", help="The last day. Default: today, in the workspace's time zone.")
@click.option("--hours", is_flag=True, help="Hour by hour; 31 days at most.")
@click.option("--url", envvar="TURNLINE_API_URL", help="The API. Default: http://127.0.0.1:8000, or as TURNLINE_API_PORT says.")
@click.option("--api-key", envvar="TURNLINE_API_KEY", help="Default: the first key of this machine's `turnline up`.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def analytics(
    agent: str | None, first: str | None, last: str | None, hours: bool, url: str | None, api_key: str | None, as_json: bool
) -> None:
    """Draw what AGENT (its name or id) came to: sessions, turns, times, cost, models and tools, day by day.

    Without AGENT it is what all agents of the workspace came to.
    """
    from cli.analytics import show

    show(get_settings(), agent, first=first, last=last, hours=hours, url=url, api_key=api_key, as_json=as_json)


@main.group()
def workspace() -> None:
    """Workspaces: the tenants."""


@workspace.command("create")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: workspace_id and api_key.")
def create_workspace(name: str, as_json: bool) -> None:
    """Create the workspace NAME and its first API key, which is shown this once only."""
    from cli.workspaces import create

    created = create(needed(broker=False), name)
    if as_json:
        click.echo(json.dumps({"workspace_id": str(created.workspace_id), "api_key": created.api_key}))
    else:
        click.echo(f"Workspace {name}: {created.workspace_id}\nIts API key, shown this once only: {created.api_key}")


@workspace.command("timezone")
@click.argument("workspace_id", metavar="ID", type=click.UUID)
@click.argument("zone", required=False)
def workspace_timezone(workspace_id: object, zone: str | None) -> None:
    """Show the time zone of the workspace ID, or let it be ZONE, like Europe/Berlin: its analytics are by days of that zone."""
    from uuid import UUID

    from cli.workspaces import timezone

    click.echo(timezone(needed(broker=False), UUID(str(workspace_id)), zone))


@workspace.command("retention")
@click.argument("workspace_id", metavar="ID", type=click.UUID)
@click.argument("days", type=click.IntRange(1, 365), required=False)
@click.option("--none", "unlimited", is_flag=True, help="No limit of its own; its agents' count alone.")
def workspace_retention(workspace_id: object, days: int | None, unlimited: bool) -> None:
    """Show or set for how many DAYS a workspace keeps sessions that have ended. An agent that has fewer keeps its own."""
    from uuid import UUID

    from cli.workspaces import retention

    if days is not None and unlimited:
        raise click.UsageError("Give DAYS or --none.")
    click.echo(retention(needed(broker=False), UUID(str(workspace_id)), days, change=unlimited or days is not None))


@main.command()
@click.option(
    "--stuck", is_flag=True, help="What to look at: open turns that nobody has carried for a while and why; dead and failed ones."
)
@click.option("--dead", is_flag=True, help="Only turns that died or failed of late and were not redriven.")
@click.option("--since", metavar="DURATION", default="1d", show_default=True, help="How far back those are looked for: 15m, 2h, 7d …")
@click.option("--limit", type=click.IntRange(1, 1000), default=30, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def turns(stuck: bool, dead: bool, since: str, limit: int, as_json: bool) -> None:
    """List turns, the newest first, as the database has them."""
    from cli.audit import duration
    from cli.turns import show_latest, show_stuck

    try:
        within_s = duration(since).total_seconds()
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if stuck or dead:
        show_stuck(needed(broker=False), limit=limit, dead_only=not stuck, within_s=within_s, as_json=as_json)
    else:
        show_latest(needed(broker=False), limit=limit, as_json=as_json)


@main.command()
@click.argument("turn_id", metavar="ID", type=click.UUID)
@click.option("--contents", is_flag=True, help="Show what was said, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def turn(turn_id: object, contents: bool, as_json: bool) -> None:
    """Tell a turn's whole story: its events, calls, attempts, times and cost."""
    from uuid import UUID

    from cli.turns import show_turn

    show_turn(needed(broker=False), UUID(str(turn_id)), contents=contents, as_json=as_json)


@main.command()
@click.argument("turn_id", metavar="ID", type=click.UUID)
@click.option(
    "--from-scratch", is_flag=True, help="Begin at its messages again, with the agent as it is now. Not if an unsafe tool has run."
)
@click.option("--by", metavar="NAME", help="Who does it, for the log. Default: this machine's user.")
def redrive(turn_id: object, from_scratch: bool, by: str | None) -> None:
    """Give a failed or dead turn another go, from its last step. Lifts its session's quarantine."""
    from uuid import UUID

    from cli import redrive as redrive_command

    click.echo(redrive_command.redrive(needed(broker=False), UUID(str(turn_id)), from_scratch=from_scratch, by=by))


@main.command()
@click.argument("session_id", metavar="SESSION", type=click.UUID)
@click.option("--by", metavar="NAME", help="Who does it, for the log. Default: this machine's user.")
def release(session_id: object, by: str | None) -> None:
    """Lift a session's quarantine: its open turns are carried again. Dead ones stay dead."""
    from uuid import UUID

    from cli import redrive as redrive_command

    click.echo(redrive_command.release(needed(broker=False), UUID(str(session_id)), by=by))


@main.command()
@click.option("--every", "every_s", metavar="SECONDS", type=click.FloatRange(0.5, 60), default=2.0, show_default=True)
@click.option("--once", is_flag=True, help="Show it once, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and end.")
def top(every_s: float, once: bool, as_json: bool) -> None:
    """Watch queues, turns, workers, tools, jobs and cost. Ctrl-C ends it. Without the broker it shows what the database tells."""
    from cli.top import top as run

    run(needed(broker=False), every_s=every_s, once=once, as_json=as_json)


@main.command()
@click.argument("session_id", metavar="SESSION", type=click.UUID)
@click.option("--reason", help="Why, for whoever asks.")
@click.option("--by", metavar="NAME", help="Who does it. Default: this machine's user.")
def hold(session_id: object, reason: str | None, by: str | None) -> None:
    """Keep a session from being deleted, by its retention or with its customer, until it is let go."""
    from uuid import UUID

    from cli import legal_holds

    click.echo(legal_holds.hold(needed(broker=False), UUID(str(session_id)), reason=reason, by=by))


@main.command()
@click.argument("session_id", metavar="SESSION", type=click.UUID)
def unhold(session_id: object) -> None:
    """Let a session go that was held: it is deleted when its retention is over."""
    from uuid import UUID

    from cli import legal_holds

    click.echo(legal_holds.unhold(needed(broker=False), UUID(str(session_id))))


@main.command()
@click.option("--customer", "customer_id", metavar="ID", required=True, help="The customer_id that their sessions were opened with.")
@click.option("--workspace", "workspace_id", metavar="ID", type=click.UUID, help="Needed where several workspaces have this customer_id.")
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--by", metavar="NAME", help="Who does it, for the receipt. Default: this machine's user.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as one JSON object. Asks nothing, so it needs --yes or --dry-run.")
def erase(customer_id: str, workspace_id: object, dry_run: bool, yes: bool, by: str | None, as_json: bool) -> None:
    """Erase a customer everywhere: sessions, their logs, turns and calls, approvals, messages that wait in the broker. Prints a receipt.

    Sums in analytics stay; they name nobody. A session that is held stops it. Killed in the middle, it goes on when it is run again.
    """
    from uuid import UUID

    from cli import erase as erasing

    if as_json and not (yes or dry_run):
        raise click.UsageError("With --json give --yes or --dry-run.")
    settings = needed()
    workspace, kept = erasing.look(settings, customer_id, UUID(str(workspace_id)) if workspace_id else None)
    if workspace is None:
        click.echo(json.dumps({"sessions": 0}) if as_json else "There is nothing of this customer. Nothing was changed.")
        return
    found = {"sessions": len(kept), "events": sum(one.events for one in kept)}
    if dry_run:
        broker = erasing.waiting(settings, kept)
        would = {"workspace_id": str(workspace), **found, "broker": broker}
        said = f"Would erase: {erasing.words(found)}; in the broker: {erasing.words(broker)}."
        click.echo(json.dumps(would) if as_json else said)
        return
    if not yes:
        click.confirm(f"Erase {erasing.words(found)} from workspace {workspace}, for good?", abort=True)
    receipt = erasing.erase(settings, customer_id, workspace, by=by)
    click.echo(json.dumps(receipt, default=str) if as_json else erasing.summary(receipt))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("--since", metavar="DURATION", help="Look at the sessions active in the last 90s, 15m, 2h, 7d … instead.")
@click.option("--all", "everything", is_flag=True, help="Look at all sessions, as far as the time allows.")
@click.option("--limit", type=click.IntRange(1, 20), default=10, show_default=True, help="Ids shown of each violation.")
@click.option("--max-seconds", type=click.FloatRange(min=0), help="How long to look. Default: TURNLINE_AUDIT_MAX_S, 60.")
@click.option("--last", is_flag=True, help="Show the last audit instead of making one.")
def audit(as_json: bool, since: str | None, everything: bool, limit: int, max_seconds: float | None, last: bool) -> None:
    """Check the books of a live database: nothing lost, nothing twice, every counter right.

    Looks at the sessions active since the last audit and at a slice of the older ones; reads ids, states and counts, never what was said.
    Exits 0 without violations, 1 with some, 2 if it could not be done.
    """
    from cli import audit as audits

    if bool(since) + everything + last > 1:
        raise click.UsageError("Give one of --since, --all and --last.")
    try:
        from_when = audits.beginning(since, everything)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        settings = needed(broker=False)
        shown = sys.stderr.isatty() and not as_json
        patience = settings.audit_max_s if max_seconds is None else max_seconds
        row = audits.last(settings) if last else audits.run(settings, since=from_when, max_s=patience, show_progress=shown)
    except (SetupError, pydantic.ValidationError) as error:
        click.echo(f"Error: {describe_settings_error(error) if isinstance(error, pydantic.ValidationError) else error}", err=True)
        sys.exit(2)
    click.echo(audits.as_json(row) if as_json else audits.as_text(row, limit))
    sys.exit(audits.exit_code(row))


@main.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=30, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def tools(limit: int, as_json: bool) -> None:
    """How the integrations of all workspaces' tools fare: those that are not well, and what has changed of late."""
    from cli.tools import show_health

    show_health(needed(broker=False), limit=limit, as_json=as_json)


@main.group("jobs")
def jobs_group() -> None:
    """Scheduled jobs: what they do, what came of them, doing one now."""


@jobs_group.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_jobs(as_json: bool) -> None:
    """Every job: what it does, how often, how its last run ended."""
    from cli import jobs

    jobs.list_jobs(needed(broker=False), as_json=as_json)


@jobs_group.command("runs")
@click.argument("name", required=False)
@click.option("--failed", is_flag=True, help="Only runs that failed or were cut off.")
@click.option("--limit", type=click.IntRange(1, 1000), default=30, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_job_runs(name: str | None, failed: bool, limit: int, as_json: bool) -> None:
    """The latest runs, of the job NAME or of all: when, by whom, how long, what was done."""
    from cli import jobs

    jobs.list_runs(needed(broker=False), name, only_bad=failed, limit=limit, as_json=as_json)


@jobs_group.command("run")
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Change nothing; count what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def run_job(name: str, dry_run: bool, as_json: bool) -> None:
    """Run the job NAME here and now, beside whatever the scheduler does. It leaves a row, as every run does."""
    from cli import jobs

    jobs.run_job(needed(broker=False), name, dry_run=dry_run, as_json=as_json)


def needed(*, database: bool = True, broker: bool = True) -> Settings:
    """The settings, completed by what `turnline up` made on this machine, with what the command cannot do without.

    Raises:
        SetupError: DATABASE_URL or CELERY_BROKER_URL is missing.
    """
    from cli.standalone.data_dir import DataDir

    given = get_settings()
    settings = DataDir(given.home).completed(given)
    wanted = [("DATABASE_URL", settings.database_url)] if database else []
    wanted += [("CELERY_BROKER_URL", settings.broker_url)] if broker else []
    missing = [name for name, value in wanted if not value]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise SetupError(f"{' and '.join(missing)} {verb} not set. Set it in the environment, or start `turnline up` here once.")
    return settings


def become(settings: Settings, command: list[str], env: Mapping[str, str] | None = None) -> NoReturn:
    """Replace this process by `command`, so that signals reach it straight."""
    sys.stdout.flush()
    os.execve(command[0], command, commands.child_env(os.environ, **commands.env_of(settings), **(env or {})))  # noqa: S606 - a list, no shell


if __name__ == "__main__":
    main(prog_name="turnline")
