"""Running `turnline` as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.servers import process_env

COMMAND = (sys.executable, "-m", "cli.main")


def run_turnline(*arguments: str, directory: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `turnline` in `directory`, with a data directory in it and no settings but `env`, and return its output."""
    environment = process_env(**({"TURNLINE_HOME": str(directory / "home")} | env))
    return subprocess.run([*COMMAND, *arguments], env=environment, cwd=directory, capture_output=True, text=True, timeout=60, check=False)
