"""Sentences that more than one place shows to people and models."""

from __future__ import annotations

RESULT_LOST = "It was started and its result was lost: it may or may not have happened."
