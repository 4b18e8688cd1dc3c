"""What can go wrong, as a tree. What to do about it is decided by the branch, in one place: `tasks/turns.py`.

TurnlineError
├── Transient          the step may succeed later
│   ├── RateLimited    the other side asked us to slow down; costs no attempt
│   ├── ProviderDown   5xx
│   │   └── Unreachable  no connection: nothing was sent; costs no attempt
│   └── TimedOut       our wall-clock deadline passed
├── Ambiguous          it may have happened
│   └── ReplyLost      the request was sent, no whole reply came back
├── Permanent          trying again changes nothing
│   ├── NotFound
│   ├── Conflict
│   ├── Rejected       the other side, or we, refuse it as it stands
│   ├── Malformed      the other side answered with something that is not its protocol
│   └── BudgetSpent    a limit of the turn, agent or workspace is used up
└── LeaseLost          another worker owns the session now; stop, write nothing
"""

from __future__ import annotations


class TurnlineError(Exception):
    """Root of the tree. `str(error)` is safe to show to an operator: no secrets, no message text.

    `maybe_done` says whether the other side may have carried the request out; ledger rows and tool
    calls are then booked as `unknown` instead of `failed`.
    """

    maybe_done: bool = False

    def __init__(self, message: str, *, maybe_done: bool | None = None) -> None:
        super().__init__(message)
        if maybe_done is not None:
            self.maybe_done = maybe_done

    @property
    def error_class(self) -> str:
        """The name stored in `turns.error_class` and shown in events."""
        return type(self).__name__


class Transient(TurnlineError):
    """May succeed later. `retry_after_s` is the other side's own wish, if it had one."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, maybe_done: bool | None = None) -> None:
        super().__init__(message, maybe_done=maybe_done)
        self.retry_after_s = retry_after_s


class RateLimited(Transient):
    """HTTP 429 or its like. Waiting it out consumes no attempt of the turn."""


class ProviderDown(Transient):
    """5xx, or no connection."""


class Unreachable(ProviderDown):
    """No connection at all, so nothing was sent. Waiting it out consumes no attempt of the turn."""


class TimedOut(Transient):
    """The wall-clock deadline passed. `maybe_done` says whether the request had been sent by then."""

    maybe_done = True


class Ambiguous(TurnlineError):
    """It may have happened; nobody here knows."""

    maybe_done = True


class ReplyLost(Ambiguous):
    """The request was sent and no whole reply came back."""


class Permanent(TurnlineError):
    """Trying again as it stands changes nothing."""


class NotFound(Permanent):
    """No such thing in this workspace."""


class Conflict(Permanent):
    """It contradicts what is already there."""


class Rejected(Permanent):
    """Refused as it stands: bad arguments, a forbidden address, a 4xx."""


class Malformed(Permanent):
    """The answer is not what the protocol says: HTML, truncated JSON, a missing field, too many bytes."""

    maybe_done = True


class BudgetSpent(Permanent):
    """A limit of the turn, agent or workspace is used up."""


class LeaseLost(TurnlineError):
    """The fence has moved on; nothing of this write was accepted."""
