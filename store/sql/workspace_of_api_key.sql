-- Returns the workspace of an API key that was not revoked, by the SHA-256 of its secret. It is asked before the workspace is known, so
-- it returns nothing else.
-- Locks: none.
-- Callers: store/tenancy.py.

-- turnline_maintenance owns it: SECURITY DEFINER gives it that role's column rights and no more.
GRANT CREATE ON SCHEMA public TO turnline_maintenance;
SET LOCAL ROLE turnline_maintenance;

CREATE OR REPLACE FUNCTION workspace_of_api_key(p_sha256 bytea) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT workspace_id FROM api_keys WHERE secret_sha256 = p_sha256 AND revoked_at IS NULL
$$;

REVOKE ALL ON FUNCTION workspace_of_api_key(bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION workspace_of_api_key(bytea) TO turnline_app;
SET LOCAL ROLE turnline_owner;
REVOKE CREATE ON SCHEMA public FROM turnline_maintenance;
