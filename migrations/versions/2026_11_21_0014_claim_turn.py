"""A claim tells which of a turn's integrations are unhealthy."""

from __future__ import annotations

from alembic import op

from migrations import sql_file

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(sql_file("0014_claim_turn.sql"))
