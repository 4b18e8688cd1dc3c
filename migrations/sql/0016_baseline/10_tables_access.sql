-- Who may do what: people, workspaces (the tenants), permissions, API keys.

-- A person, who may serve several workspaces: `permissions` says which.
CREATE TABLE users (
    id uuid NOT NULL DEFAULT uuidv7(),
    name text NOT NULL,
    email text NOT NULL,
    email_verified boolean NOT NULL DEFAULT false,
    image text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_users PRIMARY KEY (id),
    CONSTRAINT uq_users_email UNIQUE (email)
);

-- A tenant. Its days are cut in `timezone`, a name of the IANA database.
CREATE TABLE workspaces (
    id uuid NOT NULL DEFAULT uuidv7(),
    name text NOT NULL,
    owner_id uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    timezone text NOT NULL DEFAULT 'UTC',
    data_retention_days integer,
    CONSTRAINT pk_workspaces PRIMARY KEY (id),
    CONSTRAINT fk_workspaces_owner_id FOREIGN KEY (owner_id) REFERENCES users (id),
    CONSTRAINT ck_workspaces_data_retention_days CHECK (data_retention_days BETWEEN 1 AND 365),
    CONSTRAINT ck_workspaces_timezone
        CHECK (timezone ~ '^[A-Za-z_-]+(/[A-Za-z0-9_+-]+)*$' AND timezone(timezone, '2000-01-01 00:00Z'::timestamptz) IS NOT NULL)
);

-- What a user may do in a workspace.
CREATE TABLE permissions (
    id uuid NOT NULL DEFAULT uuidv7(),
    workspace_id uuid NOT NULL,
    user_id uuid NOT NULL,
    entity_type text NOT NULL DEFAULT 'workspace',
    entity_id uuid NOT NULL,
    permission_type text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_permissions PRIMARY KEY (id),
    CONSTRAINT uq_permissions_workspace_id_user_id_entity_type_entity_id UNIQUE (workspace_id, user_id, entity_type, entity_id),
    CONSTRAINT fk_permissions_user_id FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT fk_permissions_workspace_id FOREIGN KEY (workspace_id) REFERENCES workspaces (id),
    CONSTRAINT ck_permissions_permission_type CHECK (permission_type IN ('admin', 'write', 'read'))
);
CREATE INDEX ix_permissions_user_id ON permissions (user_id);

-- A bearer key, kept as the SHA-256 of its secret.
CREATE TABLE api_keys (
    id uuid NOT NULL DEFAULT uuidv7(),
    workspace_id uuid NOT NULL,
    user_id uuid,
    name text NOT NULL DEFAULT '',
    prefix text NOT NULL,
    secret_sha256 bytea NOT NULL,
    role text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT pk_api_keys PRIMARY KEY (id),
    CONSTRAINT fk_api_keys_user_id FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT fk_api_keys_workspace_id FOREIGN KEY (workspace_id) REFERENCES workspaces (id),
    CONSTRAINT ck_api_keys_role CHECK (role IN ('admin', 'write', 'read'))
);
CREATE INDEX ix_api_keys_workspace_id ON api_keys (workspace_id);
CREATE UNIQUE INDEX uq_api_keys_secret_sha256 ON api_keys (secret_sha256);
