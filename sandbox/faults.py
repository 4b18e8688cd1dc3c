"""The names of all faults, the syntax that requests them, and the count of requests that they last for."""

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
    "hang": "no answer until the client disconnects",
    "hang-mid-body": "half a body, then nothing until the client disconnects",
    "slow-headers": "one header a second, sixty of them, then the reply",
    "slow-body": "headers at once, then one byte a second",
    "reset": "RST before the reply",
    "reset-mid-body": "half a body, then RST",
    "truncated-json": "a body that ends within its JSON, with valid HTTP framing",
    "wrong-length": "more bytes promised than are sent",
    "html": "200 with an HTML page",
    "wrong-charset": "200 with a body in UTF-16 that claims to be UTF-8",
    "wrong-schema": "200 with JSON of another shape: no choices",
    "null-content": "an answer without content and without calls",
    "unknown-finish": "an unknown finish_reason",
    "negative-usage": "a negative number of tokens",
    "no-usage": "no usage at all",
    "oversized": "a body of 10 MB, length not announced",
    "gzip-bomb": "64 KB that unpack to 64 MB, whether or not gzip is accepted",
    "nul": "content with U+0000 and lone surrogates, as JSON escapes",
    "deep": "JSON 5,000 levels deep",
    "huge-int": "an integer of 5,000 digits",
    "nan": "NaN instead of a number",
    "no-done": "a stream without [DONE]; otherwise a body without its last brace",
    "duplicate-chunk": "a chunk sent twice; otherwise the document twice in one body",
    "out-of-order": "chunks with their order or indexes mixed up (streams only)",
    "error-mid-stream": "an error event after half the chunks; otherwise an error with status 200",
    "execute-then-drop": "has its effect, which is counted, then RST",
    "redirect-metadata": "302 to http://169.254.169.254/",
    "effect-then-500": "has its effect, which is counted, then 500",
    "effect-then-timeout": "has its effect, which is counted, then never answers",
}

FOREVER = 1_000_000_000
MAX_REMEMBERED = 50_000
_SYNTAX = re.compile(r"([A-Za-z0-9-]+)(?:\s+x(\d{1,9}|\*))?(?:\s+after\s+(\d{1,9}))?")


@dataclass(frozen=True, slots=True)
class FaultRequest:
    """A requested fault: it hits `times` requests after the first `spared` ones. `times` is None if not given."""

    name: str
    times: int | None = None
    spared: int = 0


def parse_fault(text: str) -> FaultRequest:
    """Parse `NAME`, `NAME xN` or `NAME x*`, optionally followed by `after K`.

    Raises:
        ValueError: invalid syntax or an unknown fault.
    """
    found = _SYNTAX.fullmatch(text.strip())
    if found is None or found[1] not in FAULTS:
        raise ValueError(f"There is no fault {text.strip()!r}; GET / lists them.")
    times = None if found[2] is None else FOREVER if found[2] == "*" else int(found[2])
    return FaultRequest(found[1], times, int(found[3] or 0))


class FaultSchedule:
    """Counts requests by key, so that a fault ends after the requested number of requests."""

    def __init__(self) -> None:
        self._seen: OrderedDict[Hashable, int] = OrderedDict()

    def next_fault(self, key: Hashable, faults: Sequence[FaultRequest], *, times: int = 1) -> str | None:
        """Return the fault for the next request with `key`, or None. `times` is the default for faults without one."""
        seen = self._seen.get(key, 0)
        self._seen[key] = seen + 1
        if len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
        for fault in faults:
            seen -= fault.spared
            if seen < 0:
                return None
            duration = times if fault.times is None else fault.times
            if seen < duration:
                return fault.name
            seen -= duration
        return None

    def reset(self) -> None:
        """Forget all counts."""
        self._seen.clear()
