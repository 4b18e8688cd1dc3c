"""Messages for settings that fail validation."""

from __future__ import annotations

import pydantic


def describe_settings_error(error: pydantic.ValidationError) -> str:
    """Return one sentence per invalid setting, named by its environment variable. Values are left out: some are secret."""
    lines = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        name = str(problem["loc"][0]) if problem["loc"] else ""
        variable = name if name.isupper() else f"TURNLINE_{name.upper()}"
        lines.append(f"The setting {variable} cannot be used: {problem['msg'].removeprefix('Value error, ')}.")
    return "\n".join(lines)
