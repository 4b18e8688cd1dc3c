"""Alembic migrations: one change per file, named by date and purpose, and the SQL that belongs to it under `sql/<revision>_<name>/`.

Migrations are frozen: `migrations/frozen.sha256` holds the digest of each, and `python -m migrations.freeze` adds a new one. A function's
current text is in `store/sql`; a migration that changes a function brings a copy of the new text, which stays as it is from then on.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from alembic.util import CommandError

_SQL = Path(__file__).parent / "sql"


def sql_file(name: str) -> str:
    """Return the text of a file under `migrations/sql`."""
    return (_SQL / name).read_text(encoding="utf-8")


def sql_files(directory: str) -> dict[str, str]:
    """Return the texts of a directory's files under `migrations/sql`, by file name, in the order of their names."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted((_SQL / directory).glob("*.sql"))}


def refuse_downgrade() -> NoReturn:
    """Refuse to downgrade. Every migration's `downgrade` calls this.

    Raises:
        CommandError: always.
    """
    raise CommandError("Turnline does not support downgrades: restore a backup from before the upgrade.")
