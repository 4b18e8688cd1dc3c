"""docker-compose.yml read as compose reads it: `${VAR:-default}` and `${VAR:?words}`, nested, and `$$`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support.servers import ROOT

FILE = ROOT / "docker-compose.yml"
Json = Any


def interpolated(value: Json, env: Mapping[str, str]) -> Json:
    """`value` with every variable in its strings replaced. Raises KeyError for a required one that is not set, or is empty."""
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
        assert following == "{", f"${following} is no variable that this file should use"
        name = ""
        for one in characters:
            if one in ":}":
                break
            name += one
        if one == "}":
            yield env.get(name, "")
            continue
        how = next(characters)
        rest = "".join(_pieces(characters, env, until="}"))
        if env.get(name):
            yield env[name]
        elif how == "-":
            yield rest
        else:
            raise KeyError(f"{name}: {rest}")


def compose(env: Mapping[str, str], path: Path = FILE) -> dict[str, Any]:
    """The file as compose understands it, with `env` for its variables."""
    read: dict[str, Any] = interpolated(yaml.safe_load(path.read_text()), env)
    return read
