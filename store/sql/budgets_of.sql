-- Returns the budgets that a model call of this session counts against: the workspace's, the agent's and the session's.
-- Locks: none.
-- Callers: claim_turn, reserve_budgets.

CREATE OR REPLACE FUNCTION budgets_of(p_workspace uuid, p_agent uuid, p_session uuid) RETURNS SETOF budgets
LANGUAGE sql STABLE AS $$
    SELECT * FROM budgets
    WHERE workspace_id = p_workspace AND (scope = 'workspace' AND scope_id = p_workspace OR scope = 'agent' AND scope_id = p_agent
        OR scope = 'session' AND scope_id = p_session)
$$;
