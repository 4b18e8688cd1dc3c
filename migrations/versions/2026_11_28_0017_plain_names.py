"""Rename columns, functions and values to the words of the documentation: dispatch, admission, running time.

No lock is held for long on a full database, and a run that was stopped anywhere is finished by the next one:

1. The partial indexes with the new values are built concurrently, on the column as it is named before.
2. One short transaction renames the columns, replaces the functions and changes the open turns.
3. The settled turns are changed in batches, each in its own transaction. Then the values get a CHECK.

Workers and API processes of the version before stop working with the second part.
"""

from __future__ import annotations

from uuid import UUID

from alembic import op
from sqlalchemy import text

from migrations import refuse_downgrade, sql_file, sql_files

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

INDEXES = {
    "ix_turns_admitted": "turns (workspace_id) WHERE place = 'admitted' AND status IN ('queued', 'running')",
    "ix_turns_pending": "turns (workspace_id, opened_at) WHERE place = 'pending' AND status = 'queued'",
}
BATCH = text("""
    WITH batch AS (SELECT id FROM turns WHERE id > :after ORDER BY id LIMIT 5000),
    changed AS (
        UPDATE turns SET admission = CASE admission WHEN 'behind' THEN 'blocked' WHEN 'waiting' THEN 'pending' ELSE 'admitted' END
        FROM batch WHERE turns.id = batch.id AND admission IN ('behind', 'waiting', 'granted'))
    SELECT id FROM batch ORDER BY id DESC LIMIT 1
""")
RENAMED = "SELECT 1 FROM pg_attribute WHERE attrelid = 'turns'::regclass AND attname = 'admission'"
BROKEN_INDEX = "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid"
CHECKED = "SELECT 1 FROM pg_constraint WHERE conrelid = 'turns'::regclass AND conname = 'ck_turns_admission'"


def upgrade() -> None:
    if not op.get_bind().scalar(text(RENAMED)):
        with op.get_context().autocommit_block():
            build_indexes()
        rename()
    with op.get_context().autocommit_block():
        change_settled_turns()
        add_check()


def downgrade() -> None:
    refuse_downgrade()


def build_indexes() -> None:
    """Build the indexes without blocking writers. It waits for transactions that are open, which blocks nobody."""
    db = op.get_bind()
    db.execute(text("SET lock_timeout = '60s'"))
    for name, definition in INDEXES.items():
        if db.scalar(text(BROKEN_INDEX), {"name": name}):  # left by a run that was stopped
            db.execute(text(f"DROP INDEX CONCURRENTLY {name}"))
        db.execute(text(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {definition}"))
    db.execute(text("SET lock_timeout = '5s'"))


def rename() -> None:
    """Rename columns, replace functions and triggers and change the open turns, in the migration's transaction."""
    op.execute(sql_file("0017_plain_names/10_columns.sql"))
    op.execute(sql_file("0017_plain_names/20_functions.sql"))
    op.execute("SET LOCAL check_function_bodies = off")
    for function in sql_files("0017_plain_names/functions").values():
        op.execute(function)
    op.execute("SET LOCAL check_function_bodies = on")
    op.execute(sql_file("0017_plain_names/30_triggers.sql"))


def change_settled_turns() -> None:
    """Go through all turns by id and change the values that are still the old ones."""
    db = op.get_bind()
    after: UUID | None = UUID(int=0)
    db.execute(text("SET ROLE turnline_maintenance"))  # row-level security hides every turn from the owner
    while after is not None:
        after = db.scalar(BATCH, {"after": after})
    db.execute(text("SET ROLE turnline_owner"))


def add_check() -> None:
    """Add the CHECK, which locks the table briefly, and validate it, which does not block writers."""
    db = op.get_bind()
    if not db.scalar(text(CHECKED)):
        values = "'blocked', 'pending', 'admitted'"
        db.execute(text(f"ALTER TABLE turns ADD CONSTRAINT ck_turns_admission CHECK (admission IN ({values})) NOT VALID"))
    db.execute(text("ALTER TABLE turns VALIDATE CONSTRAINT ck_turns_admission"))
