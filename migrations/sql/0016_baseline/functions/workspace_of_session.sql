-- Returns the workspace of a session. It is asked before the workspace is known, so it returns nothing else.
-- Locks: none.
-- Callers: store/tenancy.py.

-- turnline_maintenance owns it: SECURITY DEFINER gives it that role's column rights and no more.
GRANT CREATE ON SCHEMA public TO turnline_maintenance;
SET LOCAL ROLE turnline_maintenance;

CREATE OR REPLACE FUNCTION workspace_of_session(p_session uuid) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT workspace_id FROM sessions WHERE id = p_session
$$;

REVOKE ALL ON FUNCTION workspace_of_session(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION workspace_of_session(uuid) TO turnline_app;
SET LOCAL ROLE turnline_owner;
REVOKE CREATE ON SCHEMA public FROM turnline_maintenance;
