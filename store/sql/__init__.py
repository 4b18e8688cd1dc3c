"""The current text of every SQL function, one file each, named after it. Its header says what it does, what it locks and who calls it.

A database gets them by migrations, each of which brings frozen copies (`migrations/sql`): to change a function, change its file here and
add a migration with a copy of it. `tests/store/test_sql_functions.py` compares these files with a migrated database.

A file runs as turnline_owner, within a transaction, with or without an older version in place; a change of a function's arguments or
result needs a DROP FUNCTION before it.
"""

from __future__ import annotations

from pathlib import Path

_DIRECTORY = Path(__file__).parent
_AGGREGATE = "\nCREATE OR REPLACE AGGREGATE "


def names() -> list[str]:
    """Return the functions' names in an order in which their files can run while `check_function_bodies` is off: aggregates come last."""
    return sorted((path.stem for path in _DIRECTORY.glob("*.sql")), key=lambda name: (_AGGREGATE in text(name), name))


def text(name: str) -> str:
    """Return the text of a function's file: its header, its definition and its grants."""
    return (_DIRECTORY / f"{name}.sql").read_text(encoding="utf-8")
