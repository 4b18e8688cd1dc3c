"""The error tree. The branch decides the reaction: `engine/turn/retry.py` and `engine/turn/runner.py` for model calls.

TurnlineError
├── Transient          the step may succeed later
│   ├── RateLimited    the provider asks us to slow down; costs no attempt
│   ├── ProviderDown   5xx
│   │   └── Unreachable  no connection, nothing was sent; costs no attempt
│   └── TimedOut       our wall-clock deadline passed
├── Ambiguous          it may have happened
│   └── ReplyLost      the request was sent, no complete reply arrived
├── Permanent          repeating it would not help
│   ├── NotFound
│   ├── Conflict
│   ├── Rejected       refused by the other side, or by us
│   ├── Malformed      the answer violates the protocol
│   └── BudgetSpent    a limit of the turn, agent or workspace is used up
└── LeaseLost          another worker holds the session; nothing may be written
"""

from __future__ import annotations


class TurnlineError(Exception):
    """Root of the tree. `str(error)` is safe to show to an operator: it has no secrets and no message text.

    `maybe_done`: the other side may have carried the request out, so ledger rows and tool calls become `unknown` instead of `failed`.
    """

    maybe_done: bool = False

    def __init__(self, message: str, *, maybe_done: bool | None = None) -> None:
        super().__init__(message)
        if maybe_done is not None:
            self.maybe_done = maybe_done

    @property
    def error_class(self) -> str:
        """The name that is stored in `turns.error_class` and shown in events."""
        return type(self).__name__


class Transient(TurnlineError):
    """May succeed later. `retry_after_s` is the wait that the other side asked for, if any."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, maybe_done: bool | None = None) -> None:
        super().__init__(message, maybe_done=maybe_done)
        self.retry_after_s = retry_after_s


class RateLimited(Transient):
    """HTTP 429 or an equivalent. Waiting costs no attempt of the turn."""


class ProviderDown(Transient):
    """5xx, or no connection."""


class Unreachable(ProviderDown):
    """No connection, so nothing was sent. Waiting costs no attempt of the turn."""


class TimedOut(Transient):
    """The wall-clock deadline passed. `maybe_done`: the request had been sent by then."""

    maybe_done = True


class Ambiguous(TurnlineError):
    """It may have happened."""

    maybe_done = True


class ReplyLost(Ambiguous):
    """The request was sent, and no complete reply arrived."""


class Permanent(TurnlineError):
    """Repeating it unchanged would not help."""


class NotFound(Permanent):
    """Does not exist in this workspace."""


class Conflict(Permanent):
    """Conflicts with the current state."""


class Rejected(Permanent):
    """Refused: bad arguments, a forbidden address, a 4xx."""


class Malformed(Permanent):
    """The answer violates the protocol: HTML, truncated JSON, a missing field, too many bytes."""

    maybe_done = True


class BudgetSpent(Permanent):
    """A limit of the turn, agent or workspace is used up."""


class LeaseLost(TurnlineError):
    """Another claim raised the fence; nothing of this write was accepted."""
