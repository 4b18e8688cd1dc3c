"""Where audits and workers leave word for operators, and the columns an audit may read: ids, states and counts, never what was said."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# What turnline_maintenance may read of each table beyond what it could before. No text of a customer's, a model's or a tool's.
AUDITED = {
    "sessions": "created_at, last_activity_at, next_offset, event_count, message_count, tokens_used, input_tokens, cached_input_tokens,"
    " cache_write_tokens, output_tokens, reasoning_tokens, cost_usd, unpriced_calls, unknown_calls",
    "turns": "strategy, read_through_offset, fence, writes, started_at, settled_at, updated_at, cancel_requested_at, error_class",
    "events": 'id, workspace_id, session_id, "offset", kind, source, turn_id, tool_call_id, fence, created_at',
    "model_calls": "turn_id, step, attempt, workspace_id, session_id, state, input_tokens, cached_input_tokens, cache_write_tokens,"
    " output_tokens, reasoning_tokens, cost_usd, reserved_usd, created_at, settled_at",
    "tool_calls": "session_id, tool_call_id, workspace_id, turn_id, step, position, tool_id, state, idempotency_key, attempts,"
    " created_at, settled_at",
    "tools": "id, workspace_id, effect, updated_at",
}
NEWLY_SEEN = ("events", "model_calls", "tool_calls", "tools")


def upgrade() -> None:
    # A policy locks its table for a moment. One table a transaction, so that no turn waits for two of them, or crosses with them; first,
    # so that a try which gives up waiting for its lock leaves nothing that the next one trips over.
    with op.get_context().autocommit_block():
        for table in NEWLY_SEEN:
            op.execute(
                f"DO $$ BEGIN IF NOT EXISTS (SELECT 1 FROM pg_policies WHERE schemaname = 'public' AND tablename = '{table}'"
                f" AND policyname = 'maintenance') THEN CREATE POLICY maintenance ON {table} FOR SELECT TO turnline_maintenance"
                " USING (true); END IF; END $$"
            )
    op.create_table(
        "audits",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("complete", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("older_after", sa.Uuid(), nullable=True),
        sa.Column("checked", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("violations", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audits")),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("progress_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("running", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("stalls", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("stalled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )
    # Operators' tables: nothing of a tenant's is in them, and the application's role has no right to them.
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON audits, workers TO turnline_maintenance")
    for table, columns in AUDITED.items():
        op.execute(f"GRANT SELECT ({columns}) ON {table} TO turnline_maintenance")
