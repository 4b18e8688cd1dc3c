-- Returns how much is open. A null argument leaves its result out. o_open counts the open turns of each of p_workspaces, in their
-- order, up to p_workspace_most. o_total counts the turns that wait for a worker or run, up to p_total_most. o_behind_s is how long the
-- oldest turn that could run at once has waited for a worker. A turn is left out of o_behind_s while it is not
-- admitted, once p_longest_s have passed since it was admitted, or once a turn that was admitted 5 seconds after it has been claimed.
-- Locks: none.
-- Callers: store/conversations/backpressure.py; system_stats.

-- turnline_maintenance owns it: SECURITY DEFINER gives it that role's column rights and no more.
GRANT CREATE ON SCHEMA public TO turnline_maintenance;
SET LOCAL ROLE turnline_maintenance;

CREATE OR REPLACE FUNCTION backpressure(
    p_workspaces uuid[], p_workspace_most integer, p_total_most integer, p_longest_s double precision,
    OUT o_open bigint[], OUT o_total bigint, OUT o_behind_s double precision)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_claimed timestamptz;
BEGIN
    IF p_workspace_most IS NOT NULL THEN
        SELECT array_agg((SELECT count(*) FROM (SELECT 1 FROM turns t WHERE t.workspace_id = asked.id
                              AND t.status IN ('queued', 'running', 'waiting') LIMIT p_workspace_most) few) ORDER BY asked.position)
        INTO o_open FROM unnest(p_workspaces) WITH ORDINALITY asked (id, position);
    END IF;
    IF p_total_most IS NOT NULL THEN
        SELECT count(*) INTO o_total FROM (SELECT 1 FROM turns WHERE status IN ('queued', 'running') LIMIT p_total_most) few;
    END IF;
    IF p_longest_s IS NOT NULL THEN
        SELECT max(admitted_at) INTO v_claimed
        FROM (SELECT admitted_at, claimed_at FROM turns ORDER BY id DESC LIMIT 100) latest WHERE claimed_at >= admitted_at;
        SELECT extract(epoch FROM now() - min(t.admitted_at)) INTO o_behind_s
        FROM turns t JOIN sessions s ON s.id = t.session_id
        WHERE t.admission = 'admitted' AND t.status = 'queued' AND (t.not_before IS NULL OR t.not_before <= now())
            AND s.mode = 'auto' AND s.quarantined_at IS NULL AND (s.lease_until IS NULL OR s.lease_until < now())
            AND t.admitted_at > now() - make_interval(secs => p_longest_s)
            AND (v_claimed IS NULL OR t.admitted_at > v_claimed - interval '5 seconds');
        o_behind_s := coalesce(o_behind_s, 0);
    END IF;
END $$;

REVOKE ALL ON FUNCTION backpressure(uuid[], integer, integer, double precision) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION backpressure(uuid[], integer, integer, double precision) TO turnline_app;
SET LOCAL ROLE turnline_owner;
REVOKE CREATE ON SCHEMA public FROM turnline_maintenance;
