-- Returns which of the given sessions' running turns are to stop, and why. It returns ids and reasons only, so it needs no workspace.
-- Locks: none.
-- Callers: store/conversations/turns.py.

-- turnline_maintenance owns it: SECURITY DEFINER gives it that role's column rights and no more.
GRANT CREATE ON SCHEMA public TO turnline_maintenance;
SET LOCAL ROLE turnline_maintenance;

CREATE OR REPLACE FUNCTION cancel_reasons(p_sessions uuid[]) RETURNS TABLE (session_id uuid, reason text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT t.session_id, t.cancel_reason FROM turns t
    WHERE t.status = 'running' AND t.cancel_requested_at IS NOT NULL AND t.session_id = ANY (p_sessions)
$$;

REVOKE ALL ON FUNCTION cancel_reasons(uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cancel_reasons(uuid[]) TO turnline_app;
SET LOCAL ROLE turnline_owner;
REVOKE CREATE ON SCHEMA public FROM turnline_maintenance;
