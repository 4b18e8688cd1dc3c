-- Row-level security, forced on every table of a tenant. The application sees one workspace at a time: the one that its transaction sets.
-- `nullif`: after a transaction that set it, the setting reads '' instead of null, and ''::uuid would raise.
-- turnline_maintenance sees every workspace, as far as its grants go. Of conversations it deletes only sessions that are marked for
-- deletion and what belongs to them, and it appends only status updates to a log. To the application a marked session is gone.
-- audits, workers and job_runs are operators' tables: nothing of a tenant is in them, and the application has no right to them.

ALTER TABLE users ENABLE ROW LEVEL SECURITY;
ALTER TABLE users FORCE ROW LEVEL SECURITY;
CREATE POLICY member ON users FOR SELECT TO turnline_app
    USING (EXISTS (SELECT 1 FROM permissions p WHERE p.user_id = users.id
        AND p.workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid)));
CREATE POLICY newcomer ON users FOR INSERT TO turnline_app WITH CHECK (true);

ALTER TABLE workspaces ENABLE ROW LEVEL SECURITY;
ALTER TABLE workspaces FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON workspaces TO turnline_app
    USING (id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON workspaces FOR SELECT TO turnline_maintenance USING (true);

ALTER TABLE permissions ENABLE ROW LEVEL SECURITY;
ALTER TABLE permissions FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON permissions TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));

ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE api_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON api_keys TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON api_keys TO turnline_maintenance USING (true) WITH CHECK (true);

ALTER TABLE agents ENABLE ROW LEVEL SECURITY;
ALTER TABLE agents FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON agents TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON agents FOR SELECT TO turnline_maintenance USING (true);
CREATE POLICY maintenance_totals ON agents FOR UPDATE TO turnline_maintenance USING (true) WITH CHECK (true);

ALTER TABLE agent_snapshots ENABLE ROW LEVEL SECURITY;
ALTER TABLE agent_snapshots FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON agent_snapshots TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));

ALTER TABLE tools ENABLE ROW LEVEL SECURITY;
ALTER TABLE tools FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON tools TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON tools FOR SELECT TO turnline_maintenance USING (true);
CREATE POLICY maintenance_totals ON tools FOR UPDATE TO turnline_maintenance USING (true) WITH CHECK (true);

ALTER TABLE tool_integrations ENABLE ROW LEVEL SECURITY;
ALTER TABLE tool_integrations FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON tool_integrations TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON tool_integrations FOR SELECT TO turnline_maintenance USING (true);
CREATE POLICY checking ON tool_integrations FOR UPDATE TO turnline_maintenance USING (true);

ALTER TABLE tool_health_changes ENABLE ROW LEVEL SECURITY;
ALTER TABLE tool_health_changes FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON tool_health_changes TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON tool_health_changes TO turnline_maintenance USING (true);

ALTER TABLE agent_tools ENABLE ROW LEVEL SECURITY;
ALTER TABLE agent_tools FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON agent_tools TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON agent_tools FOR SELECT TO turnline_maintenance USING (true);
CREATE POLICY maintenance_totals ON agent_tools FOR UPDATE TO turnline_maintenance USING (true) WITH CHECK (true);

ALTER TABLE sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE sessions FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON sessions TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY present ON sessions AS RESTRICTIVE TO turnline_app USING (deleting_at IS NULL);
CREATE POLICY maintenance ON sessions TO turnline_maintenance USING (true) WITH CHECK (true);
CREATE POLICY marked ON sessions AS RESTRICTIVE FOR DELETE TO turnline_maintenance USING (deleting_at IS NOT NULL);

ALTER TABLE turns ENABLE ROW LEVEL SECURITY;
ALTER TABLE turns FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON turns TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON turns TO turnline_maintenance USING (true) WITH CHECK (true);
CREATE POLICY marked ON turns AS RESTRICTIVE FOR DELETE TO turnline_maintenance
    USING (session_id IN (SELECT id FROM sessions WHERE deleting_at IS NOT NULL));

ALTER TABLE events ENABLE ROW LEVEL SECURITY;
ALTER TABLE events FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON events TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON events FOR SELECT TO turnline_maintenance USING (true);
CREATE POLICY marked ON events FOR DELETE TO turnline_maintenance
    USING (session_id IN (SELECT id FROM sessions WHERE deleting_at IS NOT NULL));
CREATE POLICY told ON events FOR INSERT TO turnline_maintenance WITH CHECK (kind = 'status_update');

ALTER TABLE model_calls ENABLE ROW LEVEL SECURITY;
ALTER TABLE model_calls FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON model_calls TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON model_calls FOR SELECT TO turnline_maintenance USING (true);
CREATE POLICY marked ON model_calls FOR DELETE TO turnline_maintenance
    USING (session_id IN (SELECT id FROM sessions WHERE deleting_at IS NOT NULL));

ALTER TABLE tool_calls ENABLE ROW LEVEL SECURITY;
ALTER TABLE tool_calls FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON tool_calls TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON tool_calls FOR SELECT TO turnline_maintenance USING (true);
CREATE POLICY marked ON tool_calls FOR DELETE TO turnline_maintenance
    USING (session_id IN (SELECT id FROM sessions WHERE deleting_at IS NOT NULL));

ALTER TABLE approvals ENABLE ROW LEVEL SECURITY;
ALTER TABLE approvals FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON approvals TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON approvals FOR SELECT TO turnline_maintenance USING (true);
CREATE POLICY expiring ON approvals FOR UPDATE TO turnline_maintenance USING (status = 'pending') WITH CHECK (status = 'expired');
CREATE POLICY marked ON approvals FOR DELETE TO turnline_maintenance
    USING (session_id IN (SELECT id FROM sessions WHERE deleting_at IS NOT NULL));

ALTER TABLE budgets ENABLE ROW LEVEL SECURITY;
ALTER TABLE budgets FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON budgets TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON budgets FOR SELECT TO turnline_maintenance USING (true);
CREATE POLICY maintenance_spent ON budgets FOR UPDATE TO turnline_maintenance USING (true) WITH CHECK (true);
CREATE POLICY marked ON budgets FOR DELETE TO turnline_maintenance
    USING (scope = 'session' AND scope_id IN (SELECT id FROM sessions WHERE deleting_at IS NOT NULL));

ALTER TABLE budget_holds ENABLE ROW LEVEL SECURITY;
ALTER TABLE budget_holds FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON budget_holds TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON budget_holds FOR SELECT TO turnline_maintenance USING (true);
CREATE POLICY marked ON budget_holds FOR DELETE TO turnline_maintenance
    USING (EXISTS (SELECT 1 FROM turns t JOIN sessions s ON s.id = t.session_id
        WHERE t.id = budget_holds.turn_id AND s.deleting_at IS NOT NULL));

ALTER TABLE usage_facts ENABLE ROW LEVEL SECURITY;
ALTER TABLE usage_facts FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON usage_facts TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON usage_facts TO turnline_maintenance USING (true) WITH CHECK (true);

ALTER TABLE agent_rollups ENABLE ROW LEVEL SECURITY;
ALTER TABLE agent_rollups FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON agent_rollups TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON agent_rollups TO turnline_maintenance USING (true) WITH CHECK (true);

ALTER TABLE model_rollups ENABLE ROW LEVEL SECURITY;
ALTER TABLE model_rollups FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON model_rollups TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON model_rollups TO turnline_maintenance USING (true) WITH CHECK (true);

ALTER TABLE tool_rollups ENABLE ROW LEVEL SECURITY;
ALTER TABLE tool_rollups FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON tool_rollups TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON tool_rollups TO turnline_maintenance USING (true) WITH CHECK (true);

ALTER TABLE erasures ENABLE ROW LEVEL SECURITY;
ALTER TABLE erasures FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON erasures TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON erasures TO turnline_maintenance USING (true) WITH CHECK (true);

ALTER TABLE deletions ENABLE ROW LEVEL SECURITY;
ALTER TABLE deletions FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON deletions TO turnline_app
    USING (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid))
    WITH CHECK (workspace_id = (SELECT nullif(current_setting('app.workspace_id', true), '')::uuid));
CREATE POLICY maintenance ON deletions TO turnline_maintenance USING (true) WITH CHECK (true);
