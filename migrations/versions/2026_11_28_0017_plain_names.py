"""Columns and functions get the field's words: dispatch, admission, running time."""

from __future__ import annotations

from alembic import op

from migrations import refuse_downgrade, sql_file, sql_files

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(sql_file("0017_plain_names/10_columns.sql"))
    op.execute(sql_file("0017_plain_names/20_functions.sql"))
    op.execute("SET LOCAL check_function_bodies = off")
    for text in sql_files("0017_plain_names/functions").values():
        op.execute(text)
    op.execute("SET LOCAL check_function_bodies = on")
    op.execute(sql_file("0017_plain_names/30_triggers.sql"))


def downgrade() -> None:
    refuse_downgrade()
