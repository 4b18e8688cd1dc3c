"""Everything that 0.1.0 begins with: tables, policies, grants, functions and triggers. The roles are made in `migrations/env.py`."""

from __future__ import annotations

from alembic import op

from migrations import refuse_downgrade, sql_file, sql_files

revision = "0016"
down_revision = None
branch_labels = None
depends_on = None

# Aggregates are made after the functions that they are made of; a function may call one that is made after it.
AGGREGATES = ("histogram_of.sql", "histogram_sum.sql")


def upgrade() -> None:
    for part in (
        "10_tables_access",
        "11_tables_agents",
        "12_tables_conversations",
        "13_tables_budgets",
        "14_tables_analytics",
        "15_tables_operations",
        "20_policies",
        "30_grants",
    ):
        op.execute(sql_file(f"0016_baseline/{part}.sql"))
    op.execute("SET LOCAL check_function_bodies = off")
    functions = sql_files("0016_baseline/functions")
    for name in [name for name in functions if name not in AGGREGATES] + list(AGGREGATES):
        op.execute(functions[name])
    op.execute("SET LOCAL check_function_bodies = on")
    op.execute(sql_file("0016_baseline/40_triggers.sql"))


def downgrade() -> None:
    refuse_downgrade()
