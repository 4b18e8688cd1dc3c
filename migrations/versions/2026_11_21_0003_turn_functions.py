"""What every turn runs, one statement each: accept a message, claim a turn, write a turn."""

from __future__ import annotations

from alembic import op

from migrations import sql_file

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(sql_file("0003_turn_functions.sql"))
