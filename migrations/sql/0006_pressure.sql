-- Whoever grants a turn its place in its workspace's window, it has waited for a worker since then.
CREATE FUNCTION note_granted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.granted_at := now();
    RETURN NEW;
END $$;

CREATE TRIGGER turns_granted BEFORE UPDATE OF place ON turns
FOR EACH ROW WHEN (NEW.place = 'granted' AND OLD.place <> 'granted') EXECUTE FUNCTION note_granted();

-- How much is open, as counts that stop at what the caller would refuse at; null where it does not ask.
--   o_open      open turns of each of p_workspaces, in their order
--   o_total     turns that wait for a worker or are carried; those that wait for a person are not among them
--   o_behind_s  how long the oldest turn that could be carried at once has waited for a worker
-- A turn that waits for room in its own workspace's window waits for that workspace, not for a worker. Nor does one turn speak for all
-- that cannot be carried at all: it does not count once a turn that was granted after it has been carried, or after p_longest_s.
CREATE FUNCTION pressure(
    p_workspaces uuid[], p_workspace_most integer, p_total_most integer, p_longest_s double precision,
    OUT o_open bigint[], OUT o_total bigint, OUT o_behind_s double precision)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_carried timestamptz;
BEGIN
    IF p_workspace_most IS NOT NULL THEN
        SELECT array_agg((SELECT count(*) FROM (SELECT 1 FROM turns t WHERE t.workspace_id = asked.id
                              AND t.status IN ('queued', 'running', 'waiting') LIMIT p_workspace_most) few) ORDER BY asked.place)
        INTO o_open FROM unnest(p_workspaces) WITH ORDINALITY asked (id, place);
    END IF;
    IF p_total_most IS NOT NULL THEN
        SELECT count(*) INTO o_total FROM (SELECT 1 FROM turns WHERE status IN ('queued', 'running') LIMIT p_total_most) few;
    END IF;
    IF p_longest_s IS NOT NULL THEN
        SELECT max(granted_at) INTO v_carried
        FROM (SELECT granted_at, claimed_at FROM turns ORDER BY id DESC LIMIT 100) latest WHERE claimed_at >= granted_at;
        SELECT extract(epoch FROM now() - min(t.granted_at)) INTO o_behind_s
        FROM turns t JOIN sessions s ON s.id = t.session_id
        WHERE t.place = 'granted' AND t.status = 'queued' AND (t.not_before IS NULL OR t.not_before <= now())
            AND s.mode = 'auto' AND s.quarantined_at IS NULL AND (s.lease_until IS NULL OR s.lease_until < now())
            AND t.granted_at > now() - make_interval(secs => p_longest_s)
            AND (v_carried IS NULL OR t.granted_at > v_carried - interval '5 seconds');
        o_behind_s := coalesce(o_behind_s, 0);
    END IF;
END $$;

REVOKE ALL ON FUNCTION pressure(uuid[], integer, integer, double precision) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pressure(uuid[], integer, integer, double precision) TO turnline_app;
GRANT CREATE ON SCHEMA public TO turnline_maintenance;
ALTER FUNCTION pressure(uuid[], integer, integer, double precision) OWNER TO turnline_maintenance;
REVOKE CREATE ON SCHEMA public FROM turnline_maintenance;
