-- Conversations: sessions, turns, the log, calls of models and tools, approvals.

-- A conversation. Its row is the lock under which its log grows.
CREATE TABLE sessions (
    id uuid NOT NULL DEFAULT uuidv7(),
    workspace_id uuid NOT NULL,
    agent_id uuid NOT NULL,
    user_id uuid,
    customer_id text,
    mode text NOT NULL DEFAULT 'auto',
    status text NOT NULL DEFAULT 'active',
    title text,
    metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    variables jsonb NOT NULL DEFAULT '{}'::jsonb,
    session_type text NOT NULL DEFAULT 'conversation',
    tags jsonb NOT NULL DEFAULT '[]'::jsonb,
    user_agent text,
    ip_address text,
    referrer text,
    locale text NOT NULL DEFAULT 'en',
    timezone text NOT NULL DEFAULT 'UTC',
    satisfaction_score integer,
    average_response_time integer,
    next_offset integer NOT NULL DEFAULT 0,
    lease_fence bigint NOT NULL DEFAULT 0,
    lease_owner text,
    lease_until timestamptz,
    event_count integer NOT NULL DEFAULT 0,
    message_count integer NOT NULL DEFAULT 0,
    tokens_used bigint NOT NULL DEFAULT 0,
    input_tokens bigint NOT NULL DEFAULT 0,
    cached_input_tokens bigint NOT NULL DEFAULT 0,
    cache_write_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    reasoning_tokens bigint NOT NULL DEFAULT 0,
    cost_usd numeric(20, 10) NOT NULL DEFAULT 0,
    unpriced_calls integer NOT NULL DEFAULT 0,
    unknown_calls bigint NOT NULL DEFAULT 0,
    started_at timestamptz NOT NULL DEFAULT now(),
    last_activity_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    quarantined_at timestamptz,
    dead_in_row integer NOT NULL DEFAULT 0,
    counted boolean NOT NULL DEFAULT true,
    deleting_at timestamptz,
    held_at timestamptz,
    held_by text,
    hold_reason text,
    CONSTRAINT pk_sessions PRIMARY KEY (id),
    CONSTRAINT uq_sessions_workspace_id_id UNIQUE (workspace_id, id),
    CONSTRAINT fk_sessions_user_id FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT fk_sessions_workspace_id_agent_id FOREIGN KEY (workspace_id, agent_id) REFERENCES agents (workspace_id, id),
    CONSTRAINT ck_sessions_mode CHECK (mode IN ('auto', 'manual', 'paused')),
    CONSTRAINT ck_sessions_session_type CHECK (session_type IN ('conversation', 'support', 'onboarding', 'survey')),
    CONSTRAINT ck_sessions_status CHECK (status IN ('active', 'completed', 'abandoned'))
) WITH (fillfactor = 70);
CREATE INDEX ix_sessions_active ON sessions (id) WHERE status = 'active';
CREATE INDEX ix_sessions_customer ON sessions (workspace_id, customer_id) WHERE customer_id IS NOT NULL;
CREATE INDEX ix_sessions_deleting ON sessions (deleting_at, id) WHERE deleting_at IS NOT NULL;
CREATE INDEX ix_sessions_ended ON sessions (agent_id, ended_at) WHERE ended_at IS NOT NULL AND deleting_at IS NULL;
CREATE INDEX ix_sessions_page ON sessions (workspace_id, created_at, id);
CREATE INDEX ix_sessions_uncounted ON sessions (id) WHERE NOT counted;
CREATE INDEX ix_sessions_workspace_id_agent_id ON sessions (workspace_id, agent_id);

-- The work of answering a stretch of a session's log.
CREATE TABLE turns (
    id uuid NOT NULL DEFAULT uuidv7(),
    workspace_id uuid NOT NULL,
    session_id uuid NOT NULL,
    status text NOT NULL DEFAULT 'queued',
    strategy text NOT NULL DEFAULT 'coalesce',
    opened_at_offset integer NOT NULL,
    read_through_offset integer,
    agent_version integer,
    attempts integer NOT NULL DEFAULT 0,
    writes integer NOT NULL DEFAULT 0,
    fence bigint NOT NULL DEFAULT 0,
    not_before timestamptz,
    rung_at timestamptz,
    rings integer NOT NULL DEFAULT 0,
    cancel_requested_at timestamptz,
    error_class text,
    error_detail text,
    opened_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    claimed_at timestamptz,
    settled_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    place text NOT NULL DEFAULT 'waiting',
    cancel_reason text,
    cancelled_by text,
    agent_digest text,
    carried_s double precision NOT NULL DEFAULT 0,
    redrives integer NOT NULL DEFAULT 0,
    endings jsonb NOT NULL DEFAULT '[]'::jsonb,
    granted_at timestamptz,
    CONSTRAINT pk_turns PRIMARY KEY (id),
    CONSTRAINT uq_turns_session_id_opened_at_offset UNIQUE (session_id, opened_at_offset),
    CONSTRAINT uq_turns_workspace_id_id UNIQUE (workspace_id, id),
    CONSTRAINT fk_turns_workspace_id_session_id FOREIGN KEY (workspace_id, session_id) REFERENCES sessions (workspace_id, id),
    CONSTRAINT ck_turns_status CHECK (status IN ('queued', 'running', 'waiting', 'done', 'failed', 'dead', 'cancelled')),
    CONSTRAINT ck_turns_strategy CHECK (strategy IN ('coalesce', 'enqueue', 'reject', 'interrupt', 'rollback'))
) WITH (fillfactor = 80);
CREATE INDEX ix_turns_cancelling ON turns (session_id) WHERE status = 'running' AND cancel_requested_at IS NOT NULL;
CREATE INDEX ix_turns_granted ON turns (workspace_id) WHERE place = 'granted' AND status IN ('queued', 'running');
CREATE INDEX ix_turns_open ON turns (session_id, opened_at_offset) WHERE status IN ('queued', 'running', 'waiting');
CREATE INDEX ix_turns_open_by_workspace ON turns (workspace_id, opened_at) WHERE status IN ('queued', 'running', 'waiting');
CREATE INDEX ix_turns_unrung ON turns (workspace_id, opened_at) WHERE place = 'waiting' AND status = 'queued';
CREATE UNIQUE INDEX uq_turns_one_live ON turns (session_id) WHERE status IN ('running', 'waiting');

-- A line of a session's log, written once and never changed.
CREATE TABLE events (
    session_id uuid NOT NULL,
    "offset" integer NOT NULL,
    id uuid NOT NULL DEFAULT uuidv7(),
    workspace_id uuid NOT NULL,
    kind text NOT NULL,
    source text NOT NULL,
    content jsonb NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    turn_id uuid,
    tool_call_id text,
    message_key text,
    fence bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_events PRIMARY KEY (session_id, "offset"),
    CONSTRAINT fk_events_workspace_id_session_id FOREIGN KEY (workspace_id, session_id) REFERENCES sessions (workspace_id, id)
);
CREATE UNIQUE INDEX uq_events_session_id_message_key ON events (session_id, message_key) WHERE message_key IS NOT NULL;

-- A request to a model provider, written before it is sent.
CREATE TABLE model_calls (
    turn_id uuid NOT NULL,
    step integer NOT NULL,
    attempt integer NOT NULL,
    workspace_id uuid NOT NULL,
    session_id uuid NOT NULL,
    provider text NOT NULL,
    model text NOT NULL,
    state text NOT NULL,
    input_tokens integer NOT NULL DEFAULT 0,
    cached_input_tokens integer NOT NULL DEFAULT 0,
    cache_write_tokens integer NOT NULL DEFAULT 0,
    output_tokens integer NOT NULL DEFAULT 0,
    reasoning_tokens integer NOT NULL DEFAULT 0,
    cost_usd numeric(20, 10),
    price_source text,
    reserved_usd numeric(20, 10),
    ttft_ms integer,
    latency_ms integer,
    provider_request_id text,
    error_class text,
    created_at timestamptz NOT NULL DEFAULT now(),
    settled_at timestamptz,
    estimated boolean NOT NULL DEFAULT false,
    reserved_tokens bigint,
    CONSTRAINT pk_model_calls PRIMARY KEY (turn_id, step, attempt),
    CONSTRAINT fk_model_calls_workspace_id_turn_id FOREIGN KEY (workspace_id, turn_id) REFERENCES turns (workspace_id, id),
    CONSTRAINT ck_model_calls_state CHECK (state IN ('reserved', 'settled', 'unknown', 'failed'))
);
CREATE INDEX ix_model_calls_session_id ON model_calls (session_id);

-- A tool call that a model asked for.
CREATE TABLE tool_calls (
    session_id uuid NOT NULL,
    tool_call_id text NOT NULL,
    workspace_id uuid NOT NULL,
    turn_id uuid NOT NULL,
    step integer NOT NULL,
    position integer NOT NULL,
    tool_id uuid,
    integration_id uuid,
    tool_name text NOT NULL,
    state text NOT NULL,
    arguments jsonb,
    arguments_hash text NOT NULL,
    idempotency_key text NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    latency_ms integer,
    error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    settled_at timestamptz,
    effect text,
    CONSTRAINT pk_tool_calls PRIMARY KEY (session_id, tool_call_id),
    CONSTRAINT fk_tool_calls_workspace_id_turn_id FOREIGN KEY (workspace_id, turn_id) REFERENCES turns (workspace_id, id),
    CONSTRAINT ck_tool_calls_state
        CHECK (state IN ('requested', 'awaiting_approval', 'running', 'succeeded', 'failed', 'denied', 'unknown'))
);
CREATE INDEX ix_tool_calls_turn_id ON tool_calls (turn_id);
CREATE UNIQUE INDEX uq_tool_calls_workspace_id_idempotency_key ON tool_calls (workspace_id, idempotency_key);

-- A person's decision about one tool call.
CREATE TABLE approvals (
    id uuid NOT NULL DEFAULT uuidv7(),
    workspace_id uuid NOT NULL,
    session_id uuid NOT NULL,
    turn_id uuid NOT NULL,
    tool_call_id text NOT NULL,
    tool_id uuid,
    tool_name text NOT NULL,
    arguments jsonb,
    arguments_hash text NOT NULL,
    status text NOT NULL DEFAULT 'pending',
    requested_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    decided_by text,
    decided_at timestamptz,
    reason text,
    edited_arguments jsonb,
    used_at timestamptz,
    CONSTRAINT pk_approvals PRIMARY KEY (id),
    CONSTRAINT uq_approvals_session_id_tool_call_id UNIQUE (session_id, tool_call_id),
    CONSTRAINT fk_approvals_workspace_id_turn_id FOREIGN KEY (workspace_id, turn_id) REFERENCES turns (workspace_id, id),
    CONSTRAINT ck_approvals_status CHECK (status IN ('pending', 'approved', 'denied', 'expired', 'cancelled'))
);
CREATE INDEX ix_approvals_page ON approvals (workspace_id, requested_at, id);
CREATE INDEX ix_approvals_pending ON approvals (expires_at) WHERE status = 'pending';
CREATE INDEX ix_approvals_turn_id ON approvals (turn_id);
