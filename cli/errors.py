"""The error that the command line prints as a sentence."""

from __future__ import annotations


class SetupError(Exception):
    """A problem that the person at the terminal can solve, such as a missing setting or an unknown id.

    The text is one or more full sentences. `cli.main` prints it and exits with 1, without a traceback.
    """
