"""The command line, run as an operator runs it: as a process."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.support.fork_server import fork_server
from tests.support.servers import process_env

Turnline = Callable[..., "subprocess.CompletedProcess[str]"]


def turnline(*arguments: str, directory: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `turnline ARGUMENTS` in `directory` with `env` as its only settings, and return its exit code and output."""
    given = process_env(**{"TURNLINE_HOME": str(directory / "home")} | env)
    return fork_server().run(("-m", "cli.main", *arguments), given, cwd=directory)
