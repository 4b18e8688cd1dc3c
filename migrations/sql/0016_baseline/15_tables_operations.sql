-- Records for operators, and records of what was deleted.

-- One run of the audit.
CREATE TABLE audits (
    id uuid NOT NULL DEFAULT uuidv7(),
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    since timestamptz,
    complete boolean NOT NULL DEFAULT false,
    older_after uuid,
    checked jsonb NOT NULL DEFAULT '{}'::jsonb,
    violations jsonb NOT NULL DEFAULT '{}'::jsonb,
    error text,
    CONSTRAINT pk_audits PRIMARY KEY (id)
);

-- A worker process, as its watchdog last saw it.
CREATE TABLE workers (
    name text NOT NULL,
    pid integer NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now(),
    progress_at timestamptz,
    running integer NOT NULL DEFAULT 0,
    stalls integer NOT NULL DEFAULT 0,
    stalled_at timestamptz,
    CONSTRAINT pk_workers PRIMARY KEY (name)
);

-- One run of a scheduled job.
CREATE TABLE job_runs (
    id uuid NOT NULL DEFAULT uuidv7(),
    job text NOT NULL,
    asked_by text NOT NULL,
    dry_run boolean NOT NULL DEFAULT false,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    counts jsonb NOT NULL DEFAULT '{}'::jsonb,
    error text,
    CONSTRAINT pk_job_runs PRIMARY KEY (id)
);
CREATE INDEX ix_job_runs_job_id ON job_runs (job, id);

-- A customer whose data was erased, by the SHA-256 of the customer's id.
CREATE TABLE erasures (
    id uuid NOT NULL DEFAULT uuidv7(),
    workspace_id uuid NOT NULL,
    customer_sha256 bytea NOT NULL,
    asked_by text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    broker jsonb NOT NULL DEFAULT '{}'::jsonb,
    CONSTRAINT pk_erasures PRIMARY KEY (id),
    CONSTRAINT uq_erasures_workspace_id_id UNIQUE (workspace_id, id),
    CONSTRAINT fk_erasures_workspace_id FOREIGN KEY (workspace_id) REFERENCES workspaces (id)
);
CREATE UNIQUE INDEX uq_erasures_unfinished ON erasures (workspace_id, customer_sha256) WHERE finished_at IS NULL;

-- A session that was deleted or is being deleted, and how many rows went with it.
CREATE TABLE deletions (
    session_id uuid NOT NULL,
    workspace_id uuid NOT NULL,
    agent_id uuid NOT NULL,
    reason text NOT NULL,
    erasure_id uuid,
    begun_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    events integer NOT NULL DEFAULT 0,
    turns integer NOT NULL DEFAULT 0,
    model_calls integer NOT NULL DEFAULT 0,
    tool_calls integer NOT NULL DEFAULT 0,
    approvals integer NOT NULL DEFAULT 0,
    CONSTRAINT pk_deletions PRIMARY KEY (session_id),
    CONSTRAINT fk_deletions_workspace_id FOREIGN KEY (workspace_id) REFERENCES workspaces (id),
    CONSTRAINT fk_deletions_workspace_id_erasure_id FOREIGN KEY (workspace_id, erasure_id) REFERENCES erasures (workspace_id, id),
    CONSTRAINT ck_deletions_reason CHECK (reason IN ('retention', 'erase'))
);
CREATE INDEX ix_deletions_begun_at ON deletions (begun_at);
CREATE INDEX ix_deletions_erasure_id ON deletions (erasure_id) WHERE erasure_id IS NOT NULL;
