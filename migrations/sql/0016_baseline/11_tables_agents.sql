-- What answers, and what it may use: agents, tools, integrations.

-- The configured persona that answers.
CREATE TABLE agents (
    id uuid NOT NULL DEFAULT uuidv7(),
    workspace_id uuid NOT NULL,
    created_by uuid,
    name text NOT NULL,
    description text,
    status text NOT NULL DEFAULT 'active',
    composition_mode text NOT NULL DEFAULT 'fluid',
    system_prompt text,
    model_provider text NOT NULL DEFAULT 'openai',
    model_name text NOT NULL DEFAULT 'gpt-4',
    temperature integer NOT NULL DEFAULT 70,
    max_tokens integer NOT NULL DEFAULT 2000,
    conversation_style text NOT NULL DEFAULT 'professional',
    strategy text NOT NULL DEFAULT 'coalesce',
    allow_interruption boolean NOT NULL DEFAULT true,
    allow_proactive_messages boolean NOT NULL DEFAULT false,
    data_retention_days integer NOT NULL DEFAULT 30,
    version integer NOT NULL DEFAULT 1,
    total_sessions integer NOT NULL DEFAULT 0,
    total_messages bigint NOT NULL DEFAULT 0,
    total_tokens_used bigint NOT NULL DEFAULT 0,
    total_cost numeric(20, 10) NOT NULL DEFAULT 0,
    average_session_duration integer,
    last_active_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    CONSTRAINT pk_agents PRIMARY KEY (id),
    CONSTRAINT uq_agents_workspace_id_id UNIQUE (workspace_id, id),
    CONSTRAINT fk_agents_created_by FOREIGN KEY (created_by) REFERENCES users (id),
    CONSTRAINT fk_agents_workspace_id FOREIGN KEY (workspace_id) REFERENCES workspaces (id),
    CONSTRAINT ck_agents_data_retention_days CHECK (data_retention_days BETWEEN 1 AND 365),
    CONSTRAINT ck_agents_max_tokens CHECK (max_tokens BETWEEN 1 AND 100000),
    CONSTRAINT ck_agents_status CHECK (status IN ('active', 'inactive', 'archived')),
    CONSTRAINT ck_agents_strategy CHECK (strategy IN ('coalesce', 'enqueue', 'reject', 'interrupt', 'rollback')),
    CONSTRAINT ck_agents_temperature CHECK (temperature BETWEEN 0 AND 100)
);
CREATE INDEX ix_agents_page ON agents (workspace_id, created_at, id);

-- An agent and its tools as they were when a turn began, by the SHA-256 of that content.
CREATE TABLE agent_snapshots (
    agent_id uuid NOT NULL,
    digest text NOT NULL,
    workspace_id uuid NOT NULL,
    version integer NOT NULL,
    snapshot jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_agent_snapshots PRIMARY KEY (agent_id, digest),
    CONSTRAINT fk_agent_snapshots_workspace_id_agent_id FOREIGN KEY (workspace_id, agent_id) REFERENCES agents (workspace_id, id)
);

-- A tool as the model sees it, and what repeating it does (`effect`).
CREATE TABLE tools (
    id uuid NOT NULL DEFAULT uuidv7(),
    workspace_id uuid NOT NULL,
    name text NOT NULL,
    display_name text,
    description text NOT NULL DEFAULT '',
    tool_type text NOT NULL DEFAULT 'custom',
    parameters jsonb NOT NULL DEFAULT '{}'::jsonb,
    return_schema jsonb,
    usage_guidelines text,
    error_handling jsonb NOT NULL DEFAULT '{}'::jsonb,
    effect text NOT NULL DEFAULT 'unsafe',
    enabled boolean NOT NULL DEFAULT true,
    is_public boolean NOT NULL DEFAULT false,
    use_count bigint NOT NULL DEFAULT 0,
    success_rate numeric(20, 10),
    last_used_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_tools PRIMARY KEY (id),
    CONSTRAINT uq_tools_workspace_id_id UNIQUE (workspace_id, id),
    CONSTRAINT uq_tools_workspace_id_name UNIQUE (workspace_id, name),
    CONSTRAINT fk_tools_workspace_id FOREIGN KEY (workspace_id) REFERENCES workspaces (id),
    CONSTRAINT ck_tools_effect CHECK (effect IN ('pure', 'idempotent', 'queryable', 'unsafe')),
    CONSTRAINT ck_tools_tool_type CHECK (tool_type IN ('native', 'custom', 'external'))
);
CREATE INDEX ix_tools_page ON tools (workspace_id, created_at, id);

-- The system that runs a tool. `secrets` holds ciphertexts only.
CREATE TABLE tool_integrations (
    id uuid NOT NULL DEFAULT uuidv7(),
    workspace_id uuid NOT NULL,
    tool_id uuid NOT NULL,
    integration_type text NOT NULL,
    target_id text NOT NULL,
    configuration jsonb NOT NULL DEFAULT '{}'::jsonb,
    secrets jsonb NOT NULL DEFAULT '{}'::jsonb,
    enabled boolean NOT NULL DEFAULT true,
    priority integer NOT NULL DEFAULT 0,
    parameter_mapping jsonb,
    response_mapping jsonb,
    last_health_check timestamptz,
    health_status text NOT NULL DEFAULT 'unknown',
    error_count integer NOT NULL DEFAULT 0,
    last_error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    answers_in_row integer NOT NULL DEFAULT 0,
    next_health_check timestamptz,
    CONSTRAINT pk_tool_integrations PRIMARY KEY (id),
    CONSTRAINT uq_tool_integrations_workspace_id_tool_id_integration_t_35d8 UNIQUE (workspace_id, tool_id, integration_type, target_id),
    CONSTRAINT fk_tool_integrations_workspace_id_tool_id
        FOREIGN KEY (workspace_id, tool_id) REFERENCES tools (workspace_id, id) ON DELETE CASCADE,
    CONSTRAINT ck_tool_integrations_health_status CHECK (health_status IN ('healthy', 'degraded', 'unhealthy', 'unknown')),
    CONSTRAINT ck_tool_integrations_integration_type CHECK (integration_type IN ('custom_tool', 'workflow_block', 'mcp_server'))
);
CREATE INDEX ix_tool_integrations_next_health_check ON tool_integrations (next_health_check);

-- A change of an integration's health. It stays when the integration is removed.
CREATE TABLE tool_health_changes (
    id uuid NOT NULL DEFAULT uuidv7(),
    workspace_id uuid NOT NULL,
    tool_id uuid NOT NULL,
    integration_id uuid NOT NULL,
    from_status text NOT NULL,
    to_status text NOT NULL,
    error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_tool_health_changes PRIMARY KEY (id),
    CONSTRAINT fk_tool_health_changes_workspace_id_tool_id_tools
        FOREIGN KEY (workspace_id, tool_id) REFERENCES tools (workspace_id, id) ON DELETE CASCADE
);
CREATE INDEX ix_tool_health_changes_workspace_id_id ON tool_health_changes (workspace_id, id);
CREATE INDEX ix_tool_health_changes_workspace_id_tool_id ON tool_health_changes (workspace_id, tool_id);

-- Which agent may use which tool.
CREATE TABLE agent_tools (
    id uuid NOT NULL DEFAULT uuidv7(),
    workspace_id uuid NOT NULL,
    agent_id uuid NOT NULL,
    tool_id uuid NOT NULL,
    configuration jsonb NOT NULL DEFAULT '{}'::jsonb,
    enabled boolean NOT NULL DEFAULT true,
    priority integer NOT NULL DEFAULT 0,
    use_count bigint NOT NULL DEFAULT 0,
    last_used_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_agent_tools PRIMARY KEY (id),
    CONSTRAINT uq_agent_tools_workspace_id_agent_id_tool_id UNIQUE (workspace_id, agent_id, tool_id),
    CONSTRAINT fk_agent_tools_workspace_id_agent_id FOREIGN KEY (workspace_id, agent_id) REFERENCES agents (workspace_id, id),
    CONSTRAINT fk_agent_tools_workspace_id_tool_id FOREIGN KEY (workspace_id, tool_id) REFERENCES tools (workspace_id, id)
);
CREATE INDEX ix_agent_tools_workspace_id_tool_id ON agent_tools (workspace_id, tool_id);
