"""The faults the sandbox can show: their names, how they are asked for, and for how long they last."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

FAULTS = {
    "429": "rate limited, without Retry-After",
    "429-retry-after": "rate limited, Retry-After: 1",
    "429-retry-after-long": "rate limited, Retry-After: 86400",
    "429-retry-date": "rate limited, Retry-After as an HTTP date an hour ahead",
    "429-retry-garbage": "rate limited, Retry-After: soon",
    "500": "internal error",
    "502": "bad gateway, as a proxy's HTML",
    "503": "unavailable",
    "529": "overloaded",
    "401": "the key was revoked",
    "403": "the key may not do this",
    "400-context": "the context is too long",
    "hang": "no answer, until the client leaves",
    "hang-mid-body": "half a body, then nothing until the client leaves",
    "slow-headers": "one header a second, sixty of them, then the reply",
    "slow-body": "headers at once, then one byte a second",
    "reset": "RST before the reply",
    "reset-mid-body": "half a body, then RST",
    "truncated-json": "a body that ends in the middle of its JSON, in good order otherwise",
    "wrong-length": "more bytes promised than are sent",
    "html": "200 with an HTML page",
    "wrong-charset": "200 with a body in UTF-16 that claims to be UTF-8",
    "wrong-schema": "200 with other JSON than agreed: no choices",
    "null-content": "an answer without content and without calls",
    "unknown-finish": "a finish_reason nobody knows",
    "negative-usage": "a negative number of tokens",
    "no-usage": "no usage at all",
    "oversized": "a body of 10 MB, length not announced",
    "gzip-bomb": "64 KB that unpack to 64 MB, asked for or not",
    "nul": "content with U+0000 and lone surrogates, as JSON escapes",
    "deep": "JSON 5,000 levels deep",
    "huge-int": "an integer of 5,000 digits",
    "nan": "NaN where a number should be",
    "no-done": "a stream without [DONE]; otherwise a body without its last brace",
    "duplicate-chunk": "a chunk sent twice; otherwise the document twice in one body",
    "out-of-order": "chunks with their order or indexes mixed up (streams only)",
    "error-mid-stream": "an error event after half the chunks; otherwise an error with status 200",
    "execute-then-drop": "does the work, counts it, then RST",
    "redirect-metadata": "302 to http://169.254.169.254/",
    "effect-then-500": "does the work, counts it, then 500",
    "effect-then-timeout": "does the work, counts it, then never answers",
}

FOR_EVER = 1_000_000_000
MAX_REMEMBERED = 50_000
_WISH = re.compile(r"([A-Za-z0-9-]+)(?:\s+x(\d{1,9}|\*))?(?:\s+after\s+(\d{1,9}))?")


@dataclass(frozen=True, slots=True)
class Wish:
    """A fault asked for: `times` requests get it, after `spared` have gone well. No `times` means none was given."""

    name: str
    times: int | None = None
    spared: int = 0


def read_wish(text: str) -> Wish:
    """Return the wish written as `NAME`, `NAME xN` or `NAME x*`, then perhaps `after K`.

    Raises:
        ValueError: it is written otherwise, or there is no such fault.
    """
    found = _WISH.fullmatch(text.strip())
    if found is None or found[1] not in FAULTS:
        raise ValueError(f"There is no fault {text.strip()!r}; GET / lists them.")
    times = None if found[2] is None else FOR_EVER if found[2] == "*" else int(found[2])
    return Wish(found[1], times, int(found[3] or 0))


class FaultBook:
    """Remembers how many requests of a kind came, so that a fault heals after as many as were asked for."""

    def __init__(self) -> None:
        self._seen: OrderedDict[Hashable, int] = OrderedDict()

    def next(self, key: Hashable, wishes: Sequence[Wish], *, times: int = 1) -> str | None:
        """Return the fault for the next request of the kind `key`, or None; `times` holds for wishes that give none."""
        seen = self._seen.get(key, 0)
        self._seen[key] = seen + 1
        if len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
        for wish in wishes:
            seen -= wish.spared
            if seen < 0:
                return None
            lasting = times if wish.times is None else wish.times
            if seen < lasting:
                return wish.name
            seen -= lasting
        return None

    def forget(self) -> None:
        """Begin anew."""
        self._seen.clear()
