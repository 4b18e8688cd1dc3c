-- What may be spent.

-- A cap on dollars or tokens, a day (UTC) or in all, of a workspace, an agent or a session.
CREATE TABLE budgets (
    id uuid NOT NULL DEFAULT uuidv7(),
    workspace_id uuid NOT NULL,
    scope text NOT NULL,
    scope_id uuid NOT NULL,
    unit text NOT NULL,
    period text NOT NULL,
    cap numeric(20, 10) NOT NULL,
    spent numeric(20, 10) NOT NULL DEFAULT 0,
    reserved numeric(20, 10) NOT NULL DEFAULT 0,
    day date NOT NULL DEFAULT ((now() AT TIME ZONE 'UTC')::date),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_budgets PRIMARY KEY (id),
    CONSTRAINT uq_budgets_workspace_id_scope_scope_id_unit_period UNIQUE (workspace_id, scope, scope_id, unit, period),
    CONSTRAINT fk_budgets_workspace_id FOREIGN KEY (workspace_id) REFERENCES workspaces (id),
    CONSTRAINT ck_budgets_cap CHECK (cap >= 0),
    CONSTRAINT ck_budgets_period CHECK (period IN ('day', 'total')),
    CONSTRAINT ck_budgets_scope CHECK (scope IN ('workspace', 'agent', 'session')),
    CONSTRAINT ck_budgets_unit CHECK (unit IN ('usd', 'tokens'))
);

-- What one model call holds of one budget until it is settled.
CREATE TABLE budget_holds (
    turn_id uuid NOT NULL,
    step integer NOT NULL,
    attempt integer NOT NULL,
    budget_id uuid NOT NULL,
    workspace_id uuid NOT NULL,
    amount numeric(20, 10) NOT NULL,
    day date NOT NULL,
    CONSTRAINT pk_budget_holds PRIMARY KEY (turn_id, step, attempt, budget_id),
    CONSTRAINT fk_budget_holds_budget_id FOREIGN KEY (budget_id) REFERENCES budgets (id) ON DELETE CASCADE
);
CREATE INDEX ix_budget_holds_budget_id ON budget_holds (budget_id);
