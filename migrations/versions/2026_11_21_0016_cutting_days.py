"""Days are cut in another time zone a month at a time, and merging histograms is cheap."""

from __future__ import annotations

from alembic import op

from migrations import sql_file

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(sql_file("0016_cutting_days.sql"))
