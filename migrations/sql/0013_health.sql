CREATE FUNCTION workspace_of_integration(p_integration uuid) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT workspace_id FROM tool_integrations WHERE id = p_integration
$$;
REVOKE ALL ON FUNCTION workspace_of_integration(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION workspace_of_integration(uuid) TO turnline_app;
GRANT CREATE ON SCHEMA public TO turnline_maintenance;
ALTER FUNCTION workspace_of_integration(uuid) OWNER TO turnline_maintenance;
REVOKE CREATE ON SCHEMA public FROM turnline_maintenance;
