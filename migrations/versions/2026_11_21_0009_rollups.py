"""Analytics: facts on their way into sums, the sums by quarter of an hour, day and in total, and the time zone that days are cut in."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations import sql_file

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

CURRENT = "(SELECT nullif(current_setting('app.workspace_id', true), '')::uuid)"
TABLES = ("usage_facts", "agent_rollups", "model_rollups", "tool_rollups")
COLUMNS = (
    ("workspaces", "timezone text NOT NULL DEFAULT 'UTC'"),
    # Those that are there already are counted by the job, a few at a time; new ones are from 0010 on.
    ("sessions", "counted boolean NOT NULL DEFAULT false"),
)
# What turnline_maintenance may see and change beyond what it could before: names of models, counts and times.
SEEN = {
    "workspaces": "id, timezone",
    "agents": "id, workspace_id, total_sessions, total_messages, total_tokens_used, total_cost, average_session_duration, last_active_at",
    "tools": "use_count, success_rate, last_used_at",
    "agent_tools": "id, workspace_id, agent_id, tool_id, use_count, last_used_at",
    "sessions": "agent_id, counted, started_at, ended_at, satisfaction_score, average_response_time",
    "turns": "carried_s",
    "model_calls": "provider, model, ttft_ms, latency_ms",
    "tool_calls": "latency_ms",
}
WRITTEN = {
    "agents": "total_sessions, total_messages, total_tokens_used, total_cost, average_session_duration, last_active_at",
    "tools": "use_count, success_rate, last_used_at",
    "agent_tools": "use_count, last_used_at",
    "sessions": "counted, average_response_time",
}
NEWLY_SEEN = ("workspaces", "agents", "agent_tools")
NEWLY_WRITTEN = ("agents", "tools", "agent_tools")


def upgrade() -> None:
    # Each of these locks its table for a moment: one a transaction, and each harmless to repeat where a later one gave up.
    with op.get_context().autocommit_block():
        for table, column in COLUMNS:
            op.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column}")
        # Names of the IANA database, which the function that is asked here knows; whatever else it takes is kept out by the pattern.
        _unless(
            "pg_constraint WHERE conname = 'ck_workspaces_timezone'",
            "ALTER TABLE workspaces ADD CONSTRAINT ck_workspaces_timezone CHECK (timezone ~ ''^[A-Za-z_-]+(/[A-Za-z0-9_+-]+)*$''"
            " AND timezone(timezone, ''2000-01-01 00:00Z''::timestamptz) IS NOT NULL)",
        )
        for table in NEWLY_SEEN:
            _policy("maintenance", table, "FOR SELECT TO turnline_maintenance USING (true)")
        for table in NEWLY_WRITTEN:
            _policy("maintenance_totals", table, "FOR UPDATE TO turnline_maintenance USING (true) WITH CHECK (true)")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_sessions_uncounted")
        op.execute("CREATE INDEX CONCURRENTLY ix_sessions_uncounted ON sessions (id) WHERE NOT counted")

    op.execute(sql_file("0009_rollups.sql"))
    _rollup(
        "agent_rollups",
        (),
        sums="sessions_started sessions_completed sessions_abandoned active_sessions durations duration_s messages turns_done turns_failed"
        " turns_dead turns_cancelled response_ms cohort_completed cohort_abandoned cohort_messages cohort_tokens cohort_satisfaction"
        " cohort_rated",
        money="cohort_cost_usd",
        histograms="response_times wait_times work_times",
        more=(sa.Column("last_active_at", sa.DateTime(timezone=True)), sa.Column("timezone", sa.Text()), _flag("folded")),
    )
    _rollup(
        "model_rollups",
        (sa.Column("provider", sa.Text(), nullable=False), sa.Column("model", sa.Text(), nullable=False)),
        sums="calls settled_calls failed_calls unknown_calls unpriced_calls input_tokens cached_input_tokens cache_write_tokens"
        " output_tokens reasoning_tokens",
        money="cost_usd",
        histograms="latencies first_token_times",
    )
    _rollup(
        "tool_rollups",
        (sa.Column("tool_id", sa.Uuid(), nullable=False),),
        sums="calls succeeded_calls failed_calls denied_calls unknown_calls",
        histograms="latencies",
        more=(sa.Column("last_used_at", sa.DateTime(timezone=True)), _flag("folded")),
    )
    due = sa.text("grain = 'total' AND NOT folded")
    op.create_index("ix_agent_rollups_due", "agent_rollups", ["workspace_id", "agent_id"], postgresql_where=due)
    op.create_index("ix_tool_rollups_due", "tool_rollups", ["workspace_id", "tool_id"], postgresql_where=due)
    op.create_index("ix_tool_rollups_of_tool", "tool_rollups", ["workspace_id", "tool_id"], postgresql_where=sa.text("grain = 'total'"))

    for table in TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(
            f"CREATE POLICY tenant ON {table} TO turnline_app USING (workspace_id = {CURRENT}) WITH CHECK (workspace_id = {CURRENT})"
        )
        op.execute(f"CREATE POLICY maintenance ON {table} TO turnline_maintenance USING (true) WITH CHECK (true)")
        op.execute(f"GRANT SELECT ON {table} TO turnline_app")
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO turnline_maintenance")
    op.execute("GRANT INSERT ON usage_facts TO turnline_app")  # by the triggers of what it writes
    op.execute("GRANT UPDATE (timezone, updated_at) ON workspaces TO turnline_app")
    for table, columns in SEEN.items():
        op.execute(f"GRANT SELECT ({columns}) ON {table} TO turnline_maintenance")
    for table, columns in WRITTEN.items():
        op.execute(f"GRANT UPDATE ({columns}) ON {table} TO turnline_maintenance")


def _unless(there: str, statement: str) -> None:
    op.execute(f"DO $$ BEGIN IF NOT EXISTS (SELECT 1 FROM {there}) THEN EXECUTE '{statement}'; END IF; END $$")


def _policy(name: str, table: str, rule: str) -> None:
    there = f"pg_policies WHERE schemaname = 'public' AND tablename = '{table}' AND policyname = '{name}'"
    _unless(there, f"CREATE POLICY {name} ON {table} {rule}")


def _flag(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Boolean(), server_default=sa.text("false"), nullable=False)


def _rollup(
    name: str, of: tuple[sa.Column[Any], ...], *, sums: str, histograms: str, money: str = "", more: tuple[sa.Column[Any], ...] = ()
) -> None:
    key = ("workspace_id", "agent_id", "grain", "start", *(column.name for column in of))
    op.create_table(
        name,
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("agent_id", sa.Uuid(), nullable=False),
        sa.Column("grain", sa.Text(), nullable=False),
        sa.Column("start", sa.DateTime(timezone=True), nullable=False),
        *of,
        *(sa.Column(one, sa.BigInteger(), server_default=sa.text("0"), nullable=False) for one in sums.split()),
        *(sa.Column(one, sa.Numeric(20, 10), server_default=sa.text("0"), nullable=False) for one in money.split()),
        *(
            sa.Column(one, postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False)
            for one in histograms.split()
        ),
        *more,
        sa.CheckConstraint("grain IN ('quarter', 'day', 'total')", name=op.f(f"ck_{name}_grain")),
        sa.ForeignKeyConstraint(
            ["workspace_id", "agent_id"], ["agents.workspace_id", "agents.id"], name=op.f(f"fk_{name}_workspace_id_agent_id")
        ),
        sa.PrimaryKeyConstraint(*key, name=op.f(f"pk_{name}")),
    )
