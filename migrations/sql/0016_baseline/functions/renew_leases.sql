-- Renews every lease that a process still holds and returns those sessions. A lease that another claim has taken over (another fence)
-- is neither renewed nor returned.
-- Locks: the sessions' rows, in no particular order.
-- Callers: store/conversations/turns.py.

-- turnline_maintenance owns it: SECURITY DEFINER gives it that role's column rights and no more.
GRANT CREATE ON SCHEMA public TO turnline_maintenance;
SET LOCAL ROLE turnline_maintenance;

CREATE OR REPLACE FUNCTION renew_leases(p_sessions uuid[], p_fences bigint[], p_lease_s double precision) RETURNS SETOF uuid
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE sessions s SET lease_until = now() + make_interval(secs => p_lease_s)
    FROM unnest(p_sessions, p_fences) AS held (session_id, fence)
    WHERE s.id = held.session_id AND s.lease_fence = held.fence AND s.lease_owner IS NOT NULL
    RETURNING s.id
$$;

REVOKE ALL ON FUNCTION renew_leases(uuid[], bigint[], double precision) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION renew_leases(uuid[], bigint[], double precision) TO turnline_app;
SET LOCAL ROLE turnline_owner;
REVOKE CREATE ON SCHEMA public FROM turnline_maintenance;
