-- What must be known before a workspace is known. Each answers with an id or a count of its own work and nothing else.
-- They run as turnline_maintenance, whose column rights bound what a mistake here could show.

CREATE FUNCTION workspace_of_api_key(p_sha256 bytea) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT workspace_id FROM api_keys WHERE secret_sha256 = p_sha256 AND revoked_at IS NULL
$$;

CREATE FUNCTION workspace_of_session(p_session uuid) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT workspace_id FROM sessions WHERE id = p_session
$$;

CREATE FUNCTION workspace_of_turn(p_turn uuid) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT workspace_id FROM turns WHERE id = p_turn
$$;

-- The heartbeat of a whole process: renews every lease it still holds and returns those sessions.
-- A lease that was taken over (another fence) is not renewed and not returned.
CREATE FUNCTION renew_leases(p_sessions uuid[], p_fences bigint[], p_lease_s double precision) RETURNS SETOF uuid
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE sessions s SET lease_until = now() + make_interval(secs => p_lease_s)
    FROM unnest(p_sessions, p_fences) AS held (session_id, fence)
    WHERE s.id = held.session_id AND s.lease_fence = held.fence AND s.lease_owner IS NOT NULL
    RETURNING s.id
$$;

-- Rings that were published: turns still waiting for one are marked, so that the sweep leaves them alone for a while.
CREATE FUNCTION mark_rung(p_turns uuid[]) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE turns SET rung_at = now() WHERE id = ANY (p_turns) AND status = 'queued' AND rung_at IS NULL
$$;

REVOKE ALL ON FUNCTION workspace_of_api_key(bytea), workspace_of_session(uuid), workspace_of_turn(uuid),
    renew_leases(uuid[], bigint[], double precision), mark_rung(uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION workspace_of_api_key(bytea), workspace_of_session(uuid), workspace_of_turn(uuid),
    renew_leases(uuid[], bigint[], double precision), mark_rung(uuid[]) TO turnline_app;

GRANT CREATE ON SCHEMA public TO turnline_maintenance;
ALTER FUNCTION workspace_of_api_key(bytea) OWNER TO turnline_maintenance;
ALTER FUNCTION workspace_of_session(uuid) OWNER TO turnline_maintenance;
ALTER FUNCTION workspace_of_turn(uuid) OWNER TO turnline_maintenance;
ALTER FUNCTION renew_leases(uuid[], bigint[], double precision) OWNER TO turnline_maintenance;
ALTER FUNCTION mark_rung(uuid[]) OWNER TO turnline_maintenance;
REVOKE CREATE ON SCHEMA public FROM turnline_maintenance;
