"""The tables of the first slice: access, agents, tools, sessions, events, turns, ledger, tool calls."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("email_verified", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("image", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
    )
    op.create_table(
        "workspaces",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_workspaces_owner_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workspaces")),
    )
    op.create_table(
        "agents",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), server_default=sa.text("'active'"), nullable=False),
        sa.Column("composition_mode", sa.Text(), server_default=sa.text("'fluid'"), nullable=False),
        sa.Column("system_prompt", sa.Text(), nullable=True),
        sa.Column("model_provider", sa.Text(), server_default=sa.text("'openai'"), nullable=False),
        sa.Column("model_name", sa.Text(), server_default=sa.text("'gpt-4'"), nullable=False),
        sa.Column("temperature", sa.Integer(), server_default=sa.text("70"), nullable=False),
        sa.Column("max_tokens", sa.Integer(), server_default=sa.text("2000"), nullable=False),
        sa.Column("conversation_style", sa.Text(), server_default=sa.text("'professional'"), nullable=False),
        sa.Column("strategy", sa.Text(), server_default=sa.text("'coalesce'"), nullable=False),
        sa.Column("allow_interruption", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("allow_proactive_messages", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("data_retention_days", sa.Integer(), server_default=sa.text("30"), nullable=False),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("total_sessions", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("total_messages", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("total_tokens_used", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("total_cost", sa.Numeric(precision=20, scale=10), server_default=sa.text("0"), nullable=False),
        sa.Column("average_session_duration", sa.Integer(), nullable=True),
        sa.Column("last_active_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('active', 'inactive', 'archived')", name=op.f("ck_agents_status")),
        sa.CheckConstraint("strategy IN ('coalesce', 'enqueue', 'reject', 'interrupt', 'rollback')", name=op.f("ck_agents_strategy")),
        sa.CheckConstraint("data_retention_days BETWEEN 1 AND 365", name=op.f("ck_agents_data_retention_days")),
        sa.CheckConstraint("max_tokens BETWEEN 1 AND 100000", name=op.f("ck_agents_max_tokens")),
        sa.CheckConstraint("temperature BETWEEN 0 AND 100", name=op.f("ck_agents_temperature")),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name=op.f("fk_agents_created_by")),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name=op.f("fk_agents_workspace_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agents")),
        sa.UniqueConstraint("workspace_id", "id", name=op.f("uq_agents_workspace_id_id")),
    )
    op.create_index("ix_agents_page", "agents", ["workspace_id", "created_at", "id"], unique=False)
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("name", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("role IN ('admin', 'write', 'read')", name=op.f("ck_api_keys_role")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_api_keys_user_id")),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name=op.f("fk_api_keys_workspace_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_index("ix_api_keys_workspace_id", "api_keys", ["workspace_id"], unique=False)
    op.create_index("uq_api_keys_secret_sha256", "api_keys", ["secret_sha256"], unique=True)
    op.create_table(
        "permissions",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("entity_type", sa.Text(), server_default=sa.text("'workspace'"), nullable=False),
        sa.Column("entity_id", sa.Uuid(), nullable=False),
        sa.Column("permission_type", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("permission_type IN ('admin', 'write', 'read')", name=op.f("ck_permissions_permission_type")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_permissions_user_id")),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name=op.f("fk_permissions_workspace_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_permissions")),
        sa.UniqueConstraint(
            "workspace_id", "user_id", "entity_type", "entity_id", name=op.f("uq_permissions_workspace_id_user_id_entity_type_entity_id")
        ),
    )
    op.create_index(op.f("ix_permissions_user_id"), "permissions", ["user_id"], unique=False)
    op.create_table(
        "tools",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=True),
        sa.Column("description", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("tool_type", sa.Text(), server_default=sa.text("'custom'"), nullable=False),
        sa.Column("parameters", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("return_schema", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("usage_guidelines", sa.Text(), nullable=True),
        sa.Column("error_handling", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("effect", sa.Text(), server_default=sa.text("'unsafe'"), nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("is_public", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("use_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("success_rate", sa.Numeric(precision=20, scale=10), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("effect IN ('pure', 'idempotent', 'queryable', 'unsafe')", name=op.f("ck_tools_effect")),
        sa.CheckConstraint("tool_type IN ('native', 'custom', 'external')", name=op.f("ck_tools_tool_type")),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name=op.f("fk_tools_workspace_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tools")),
        sa.UniqueConstraint("workspace_id", "id", name=op.f("uq_tools_workspace_id_id")),
        sa.UniqueConstraint("workspace_id", "name", name=op.f("uq_tools_workspace_id_name")),
    )
    op.create_index("ix_tools_page", "tools", ["workspace_id", "created_at", "id"], unique=False)
    op.create_table(
        "agent_tools",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("agent_id", sa.Uuid(), nullable=False),
        sa.Column("tool_id", sa.Uuid(), nullable=False),
        sa.Column("configuration", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("priority", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("use_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["workspace_id", "agent_id"], ["agents.workspace_id", "agents.id"], name=op.f("fk_agent_tools_workspace_id_agent_id")
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id", "tool_id"], ["tools.workspace_id", "tools.id"], name=op.f("fk_agent_tools_workspace_id_tool_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agent_tools")),
        sa.UniqueConstraint("workspace_id", "agent_id", "tool_id", name=op.f("uq_agent_tools_workspace_id_agent_id_tool_id")),
    )
    op.create_index("ix_agent_tools_workspace_id_tool_id", "agent_tools", ["workspace_id", "tool_id"], unique=False)
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("agent_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("customer_id", sa.Text(), nullable=True),
        sa.Column("mode", sa.Text(), server_default=sa.text("'auto'"), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'active'"), nullable=False),
        sa.Column("title", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("variables", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("session_type", sa.Text(), server_default=sa.text("'conversation'"), nullable=False),
        sa.Column("tags", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'::jsonb"), nullable=False),
        sa.Column("user_agent", sa.Text(), nullable=True),
        sa.Column("ip_address", sa.Text(), nullable=True),
        sa.Column("referrer", sa.Text(), nullable=True),
        sa.Column("locale", sa.Text(), server_default=sa.text("'en'"), nullable=False),
        sa.Column("timezone", sa.Text(), server_default=sa.text("'UTC'"), nullable=False),
        sa.Column("satisfaction_score", sa.Integer(), nullable=True),
        sa.Column("average_response_time", sa.Integer(), nullable=True),
        sa.Column("next_offset", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_fence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("event_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("message_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("tokens_used", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cached_input_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cache_write_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cost_usd", sa.Numeric(precision=20, scale=10), server_default=sa.text("0"), nullable=False),
        sa.Column("unpriced_calls", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("unknown_calls", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_activity_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("mode IN ('auto', 'manual', 'paused')", name=op.f("ck_sessions_mode")),
        sa.CheckConstraint("session_type IN ('conversation', 'support', 'onboarding', 'survey')", name=op.f("ck_sessions_session_type")),
        sa.CheckConstraint("status IN ('active', 'completed', 'abandoned')", name=op.f("ck_sessions_status")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id")),
        sa.ForeignKeyConstraint(
            ["workspace_id", "agent_id"], ["agents.workspace_id", "agents.id"], name=op.f("fk_sessions_workspace_id_agent_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
        sa.UniqueConstraint("workspace_id", "id", name=op.f("uq_sessions_workspace_id_id")),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index("ix_sessions_page", "sessions", ["workspace_id", "created_at", "id"], unique=False)
    op.create_index("ix_sessions_workspace_id_agent_id", "sessions", ["workspace_id", "agent_id"], unique=False)
    op.create_table(
        "tool_integrations",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("tool_id", sa.Uuid(), nullable=False),
        sa.Column("integration_type", sa.Text(), nullable=False),
        sa.Column("target_id", sa.Text(), nullable=False),
        sa.Column("configuration", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("secrets", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("priority", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("parameter_mapping", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("response_mapping", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("last_health_check", sa.DateTime(timezone=True), nullable=True),
        sa.Column("health_status", sa.Text(), server_default=sa.text("'unknown'"), nullable=False),
        sa.Column("error_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "health_status IN ('healthy', 'degraded', 'unhealthy', 'unknown')", name=op.f("ck_tool_integrations_health_status")
        ),
        sa.CheckConstraint(
            "integration_type IN ('custom_tool', 'workflow_block', 'mcp_server')", name=op.f("ck_tool_integrations_integration_type")
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id", "tool_id"],
            ["tools.workspace_id", "tools.id"],
            name=op.f("fk_tool_integrations_workspace_id_tool_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tool_integrations")),
        sa.UniqueConstraint(
            "workspace_id",
            "tool_id",
            "integration_type",
            "target_id",
            name=op.f("uq_tool_integrations_workspace_id_tool_id_integration_type_target_id"),
        ),
    )
    op.create_table(
        "events",
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("offset", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("content", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("turn_id", sa.Uuid(), nullable=True),
        sa.Column("tool_call_id", sa.Text(), nullable=True),
        sa.Column("message_key", sa.Text(), nullable=True),
        sa.Column("fence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["workspace_id", "session_id"], ["sessions.workspace_id", "sessions.id"], name=op.f("fk_events_workspace_id_session_id")
        ),
        sa.PrimaryKeyConstraint("session_id", "offset", name=op.f("pk_events")),
    )
    op.create_index(
        "uq_events_session_id_message_key",
        "events",
        ["session_id", "message_key"],
        unique=True,
        postgresql_where=sa.text("message_key IS NOT NULL"),
    )
    op.create_table(
        "turns",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'queued'"), nullable=False),
        sa.Column("strategy", sa.Text(), server_default=sa.text("'coalesce'"), nullable=False),
        sa.Column("opened_at_offset", sa.Integer(), nullable=False),
        sa.Column("read_through_offset", sa.Integer(), nullable=True),
        sa.Column("agent_version", sa.Integer(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("writes", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("fence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("rung_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("rings", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error_class", sa.Text(), nullable=True),
        sa.Column("error_detail", sa.Text(), nullable=True),
        sa.Column("opened_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'waiting', 'done', 'failed', 'dead', 'cancelled')", name=op.f("ck_turns_status")
        ),
        sa.CheckConstraint("strategy IN ('coalesce', 'enqueue', 'reject', 'interrupt', 'rollback')", name=op.f("ck_turns_strategy")),
        sa.ForeignKeyConstraint(
            ["workspace_id", "session_id"], ["sessions.workspace_id", "sessions.id"], name=op.f("fk_turns_workspace_id_session_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_turns")),
        sa.UniqueConstraint("session_id", "opened_at_offset", name=op.f("uq_turns_session_id_opened_at_offset")),
        sa.UniqueConstraint("workspace_id", "id", name=op.f("uq_turns_workspace_id_id")),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index(
        "ix_turns_open",
        "turns",
        ["session_id", "opened_at_offset"],
        unique=False,
        postgresql_where=sa.text("status IN ('queued', 'running', 'waiting')"),
    )
    op.create_index("uq_turns_one_live", "turns", ["session_id"], unique=True, postgresql_where=sa.text("status IN ('running', 'waiting')"))
    op.create_table(
        "model_calls",
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("step", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("input_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("cached_input_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("cache_write_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("output_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("reasoning_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("cost_usd", sa.Numeric(precision=20, scale=10), nullable=True),
        sa.Column("price_source", sa.Text(), nullable=True),
        sa.Column("reserved_usd", sa.Numeric(precision=20, scale=10), nullable=True),
        sa.Column("ttft_ms", sa.Integer(), nullable=True),
        sa.Column("latency_ms", sa.Integer(), nullable=True),
        sa.Column("provider_request_id", sa.Text(), nullable=True),
        sa.Column("error_class", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('reserved', 'settled', 'unknown', 'failed')", name=op.f("ck_model_calls_state")),
        sa.ForeignKeyConstraint(
            ["workspace_id", "turn_id"], ["turns.workspace_id", "turns.id"], name=op.f("fk_model_calls_workspace_id_turn_id")
        ),
        sa.PrimaryKeyConstraint("turn_id", "step", "attempt", name=op.f("pk_model_calls")),
    )
    op.create_index("ix_model_calls_session_id", "model_calls", ["session_id"], unique=False)
    op.create_table(
        "tool_calls",
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("tool_call_id", sa.Text(), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("tool_id", sa.Uuid(), nullable=True),
        sa.Column("integration_id", sa.Uuid(), nullable=True),
        sa.Column("tool_name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("arguments", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("arguments_hash", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("latency_ms", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('requested', 'awaiting_approval', 'running', 'succeeded', 'failed', 'denied', 'unknown')",
            name=op.f("ck_tool_calls_state"),
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id", "turn_id"], ["turns.workspace_id", "turns.id"], name=op.f("fk_tool_calls_workspace_id_turn_id")
        ),
        sa.PrimaryKeyConstraint("session_id", "tool_call_id", name=op.f("pk_tool_calls")),
    )
    op.create_index("ix_tool_calls_turn_id", "tool_calls", ["turn_id"], unique=False)
    op.create_index("uq_tool_calls_workspace_id_idempotency_key", "tool_calls", ["workspace_id", "idempotency_key"], unique=True)
