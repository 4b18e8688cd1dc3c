"""Remove secrets and prompts from text of other servers: their errors quote API keys and prompts, their answers request headers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from engine.safe_json import clean_text

_HIDDEN = "[…]"
# Replacing shorter secrets would hide half of every text and protect nothing.
_SHORTEST_SECRET = 6
_ECHO_LENGTH = 16
_KEY_LIKE = re.compile(
    r"(?i)\b(?:bearer|basic)\s+[\w.~+/=-]{6,}"
    r"|\b(?:sk|pk|rk|xai|gsk|ghp|gho|glpat|xox[a-z]|AKIA|ASIA|AIza)[-_]?[\w*.-]{8,}"
    r"|\beyJ[\w-]{4,}\.[\w-]+\.[\w-]*"
    r"|(?<=[?&])(?:api_?key|key|token|secret|signature|sig)=[^&\s]+"
)


def redact(text: str, *, secrets: Iterable[str] = (), echoes: Collection[str] = (), limit: int = 300) -> str:
    """Return at most `limit` characters of `text`, on one line.

    `secrets`, words that look like API keys, and any 16 or more consecutive characters of `echoes` are replaced.
    """
    text = without_secrets(clean_text(text), secrets)
    text = " ".join(_KEY_LIKE.sub(_HIDDEN, text[: 4 * limit]).split())
    shown = text[:limit]
    if echoes:
        shown = _without_echoes(shown, echoes)
    return shown + "…" if len(text) > limit else shown


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return `text` with `secrets` replaced; those shorter than 6 characters stay."""
    for secret in sorted({secret.strip() for secret in secrets}, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, _HIDDEN)
    return text


def value_without_secrets(value: Any, secrets: Collection[str]) -> Any:
    """Return the JSON `value` with `secrets` replaced in strings and keys. Recursive: check the depth first."""
    if isinstance(value, str):
        return without_secrets(value, secrets)
    if isinstance(value, list):
        return [value_without_secrets(item, secrets) for item in value]
    if isinstance(value, dict):
        return {without_secrets(key, secrets): value_without_secrets(item, secrets) for key, item in value.items()}
    return value


def _without_echoes(text: str, echoes: Collection[str]) -> str:
    haystack = "\n".join(" ".join(echo.split()) for echo in echoes)
    parts, start = [], 0
    while start < len(text):
        length = _ECHO_LENGTH
        if text[start : start + length] in haystack and start + length <= len(text):
            while start + length < len(text) and text[start : start + length + 1] in haystack:
                length += 1
            parts.append(_HIDDEN)
            start += length
        else:
            parts.append(text[start])
            start += 1
    return "".join(parts)
