"""The command line, `turnline`: the group that lists every command and prints foreseeable errors as sentences."""

from __future__ import annotations

import click
import pydantic

from cli.errors import SetupError
from cli.lazy_group import LazyCommand, LazyGroup
from cli.settings_errors import describe_settings_error
from failpoints import refuse_a_normal_start
from settings import Settings, __version__

SECTIONS = {
    "Run": {
        "up": LazyCommand("cli.up:up", "Run everything on this machine: servers, API, workers, beat and Flower."),
        "migrate": LazyCommand("cli.migrate:migrate", "Upgrade the database's schema."),
        "api": LazyCommand("cli.processes:api", "Run the API."),
        "worker": LazyCommand("cli.processes:worker", "Run a worker."),
        "beat": LazyCommand("cli.processes:beat", "Run the scheduler."),
        "flower": LazyCommand("cli.processes:flower", "Run Flower, behind a password."),
        "sandbox": LazyCommand("cli.processes:sandbox", "Run the sandbox: a stand-in model provider and tool server."),
    },
    "Use": {
        "workspace": LazyCommand("cli.workspaces:workspace", "Create and configure workspaces, the tenants."),
        "chat": LazyCommand("cli.chat:chat", "Talk to AGENT in the terminal."),
        "analytics": LazyCommand("cli.analytics:analytics", "Show analytics of AGENT, or of the whole workspace."),
        "demo": LazyCommand("cli.demo:demo", "Answer one message with everything running on temporary servers."),
    },
    "Inspect": {
        "doctor": LazyCommand("cli.doctor:doctor", "Check this installation and print what is wrong and what to do."),
        "top": LazyCommand("cli.top:top", "Show queues, turns, workers, tools, jobs and cost, live."),
        "turns": LazyCommand("cli.turns:turns", "List turns, the newest first."),
        "turn": LazyCommand("cli.turn_report:turn", "Show everything about one turn."),
        "tools": LazyCommand("cli.tools:tools", "List unhealthy tool integrations and recent changes of health."),
        "jobs": LazyCommand("cli.jobs:jobs", "List scheduled jobs and their runs, or run one now."),
        "audit": LazyCommand("cli.audit:audit", "Check the consistency of a live database."),
    },
    "Repair, keep and erase": {
        "redrive": LazyCommand("cli.redrive:redrive", "Run a failed or dead turn again."),
        "release": LazyCommand("cli.redrive:release", "Lift the quarantine of a session."),
        "hold": LazyCommand("cli.legal_holds:hold", "Place a legal hold on a session, so that it is not deleted."),
        "unhold": LazyCommand("cli.legal_holds:unhold", "Lift the legal hold of a session."),
        "erase": LazyCommand("cli.erase:erase", "Erase all data of a customer."),
    },
}


class CommandLine(LazyGroup):
    """The `turnline` group. A `SetupError` or an invalid setting becomes one message and exit code 1, without a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except SetupError as error:
            raise click.ClickException(str(error)) from None
        except pydantic.ValidationError as error:
            if error.title != Settings.__name__:
                raise
            raise click.ClickException(describe_settings_error(error)) from None


@click.group(cls=CommandLine, sections=SECTIONS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="turnline")
def main() -> None:
    """Run and operate Turnline: durable agent turns on Celery and Postgres.

    `turnline up` runs everything on this machine. `turnline COMMAND --help` explains a command.

    Settings are environment variables: DATABASE_URL, CELERY_BROKER_URL, REDIS_URL, OPENAI_API_KEY, OPENAI_BASE_URL and
    TURNLINE_*. Commands that need a database or broker use those of `turnline up` if none is set.
    """
    refuse_a_normal_start()


if __name__ == "__main__":
    main(prog_name="turnline")
