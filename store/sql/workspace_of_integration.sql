-- Returns the workspace of a tool integration. It is asked before the workspace is known, so it returns nothing else.
-- Locks: none.
-- Callers: store/tenancy.py.

-- turnline_maintenance owns it: SECURITY DEFINER gives it that role's column rights and no more.
GRANT CREATE ON SCHEMA public TO turnline_maintenance;
SET LOCAL ROLE turnline_maintenance;

CREATE OR REPLACE FUNCTION workspace_of_integration(p_integration uuid) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT workspace_id FROM tool_integrations WHERE id = p_integration
$$;

REVOKE ALL ON FUNCTION workspace_of_integration(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION workspace_of_integration(uuid) TO turnline_app;
SET LOCAL ROLE turnline_owner;
REVOKE CREATE ON SCHEMA public FROM turnline_maintenance;
