"""Options, arguments and settings that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import click

from cli.errors import SetupError
from cli.standalone.data_dir import DataDir
from settings import Settings, get_settings

Command = TypeVar("Command", bound=Callable[..., Any])

_DURATION_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

turn_id_argument = click.argument("turn_id", metavar="ID", type=click.UUID)
session_id_argument = click.argument("session_id", metavar="SESSION", type=click.UUID)
workspace_id_argument = click.argument("workspace_id", metavar="ID", type=click.UUID)

limit_option = click.option("--limit", type=click.IntRange(1, 1000), default=30, show_default=True, help="Rows to show at most.")
by_option = click.option("--by", metavar="NAME", help="The person recorded as doing this. Default: this machine's user.")
url_option = click.option("--url", envvar="TURNLINE_API_URL", help="URL of the API. Default: http://127.0.0.1:TURNLINE_API_PORT.")
api_key_option = click.option("--api-key", envvar="TURNLINE_API_KEY", help="Default: the first key of `turnline up` on this machine.")


def json_option(help_text: str = "Print one JSON object.") -> Callable[[Command], Command]:
    """Return the `--json` flag, which sets `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=help_text)


class Duration(click.ParamType[timedelta]):
    """A parameter like "90s", "15m", "2h", "7d" or "1w", converted to a `timedelta`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the duration, or fail with a usage error."""
        if isinstance(value, timedelta):
            return value
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def parse_duration(text: str) -> timedelta:
    """Return the duration that `text` names: "90s", "15m", "2h", "7d" or "1w". Raises ValueError."""
    found = re.fullmatch(r"(\d{1,6})([smhdw])", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a duration; write it like 90s, 15m, 2h, 7d or 1w")
    return timedelta(**{_DURATION_UNITS[found[2]]: int(found[1])})


def require_settings(*, database: bool = True, broker: bool = True) -> Settings:
    """Return the settings, filled in from what `turnline up` created on this machine.

    Raises:
        SetupError: the URL of the database or the broker is needed and missing.
    """
    from_env = get_settings()
    settings = DataDir(from_env.home).complete(from_env)
    required = [("DATABASE_URL", settings.database_url)] if database else []
    required += [("CELERY_BROKER_URL", settings.broker_url)] if broker else []
    missing = [name for name, value in required if not value]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise SetupError(f"{' and '.join(missing)} {verb} not set. Set it in the environment, or run `turnline up` here once.")
    return settings
