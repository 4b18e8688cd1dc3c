"""Small programs as managed processes, for tests of the supervisor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cli.standalone.process import Command, log_contains
from tests.support.servers import process_env

READY_PROGRAM = "import time; print('ready', flush=True); time.sleep(60)"


def python_process(directory: Path, name: str, program: str, **options: Any) -> Command:
    """Return a managed process that runs `program` with Python in `directory`. By default it is ready when it has printed "ready"."""
    command = [sys.executable, "-c", program]
    options = {"ready": log_contains("ready")} | options
    return Command(name, command, env=process_env(), cwd=directory, log=directory / f"{name}.log", **options)
