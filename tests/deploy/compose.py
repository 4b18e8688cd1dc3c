"""Read docker-compose.yml as Compose does: interpolate `${VAR:-default}` and `${VAR:?message}`, nested, and `$$`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support.servers import ROOT

FILE = ROOT / "docker-compose.yml"
Json = Any


def interpolated(value: Json, env: Mapping[str, str]) -> Json:
    """Return `value` with the variables in its strings replaced. Raise KeyError if a required one is unset or empty."""
    if isinstance(value, dict):
        return {key: interpolated(one, env) for key, one in value.items()}
    if isinstance(value, list):
        return [interpolated(one, env) for one in value]
    return "".join(_pieces(iter(value), env, until="")) if isinstance(value, str) else value


def _pieces(characters: Iterator[str], env: Mapping[str, str], *, until: str) -> Iterator[str]:
    for character in characters:
        if character == until:
            return
        if character != "$":
            yield character
            continue
        following = next(characters)
        if following == "$":
            yield "$"
            continue
        assert following == "{", f"${following} is not a supported form of interpolation"
        name = ""
        for one in characters:
            if one in ":}":
                break
            name += one
        if one == "}":
            yield env.get(name, "")
            continue
        operator = next(characters)
        default = "".join(_pieces(characters, env, until="}"))
        if env.get(name):
            yield env[name]
        elif operator == "-":
            yield default
        else:
            raise KeyError(f"{name}: {default}")


def compose(env: Mapping[str, str], path: Path = FILE) -> dict[str, Any]:
    """Return the content of the file with `env` for its variables."""
    content: dict[str, Any] = interpolated(yaml.safe_load(path.read_text()), env)
    return content
