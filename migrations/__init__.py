"""Alembic migrations: one change per file, named by date and purpose."""

from __future__ import annotations

from pathlib import Path


def sql_file(name: str) -> str:
    """The text of a file under `migrations/sql`."""
    return (Path(__file__).parent / "sql" / name).read_text()
