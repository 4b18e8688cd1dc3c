"""The command line as a process, the way an operator runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.fork_server import fork_server
from tests.support.servers import process_env

COMMAND = (sys.executable, "-m", "cli.main")

Turnline = Callable[..., "subprocess.CompletedProcess[str]"]


def turnline(*arguments: str, directory: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `turnline ARGUMENTS` in `directory` with `env` as its only settings, and return its exit code and output."""
    environment = process_env(**{"TURNLINE_HOME": str(directory / "home")} | env)
    return fork_server().run((*COMMAND[1:], *arguments), environment, cwd=directory)
