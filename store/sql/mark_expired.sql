-- Marks for deletion up to p_limit sessions that ended longer ago than their agent's retention, or their workspace's where that is
-- shorter, and that had no activity since. Skips sessions that are held, not counted yet, have an open turn or a live lease. Returns
-- how many. Runs as turnline_maintenance.
-- Locks: the sessions' rows, longest ended first; locked ones are skipped.
-- Callers: store/retention/cleanup.py.

CREATE OR REPLACE FUNCTION mark_expired(p_limit integer) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    v_ids uuid[];
BEGIN
    v_ids := ARRAY(
        SELECT due.id FROM agents a JOIN workspaces w ON w.id = a.workspace_id CROSS JOIN LATERAL (
            SELECT s.id FROM sessions s
            WHERE s.agent_id = a.id AND s.ended_at < now() - make_interval(days => least(a.data_retention_days, w.data_retention_days))
                AND s.last_activity_at < now() - make_interval(days => least(a.data_retention_days, w.data_retention_days))
                AND s.deleting_at IS NULL AND s.held_at IS NULL AND s.status <> 'active' AND s.counted
                AND (s.lease_until IS NULL OR s.lease_until < now())
                AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.session_id = s.id AND t.status IN ('queued', 'running', 'waiting'))
            ORDER BY s.ended_at LIMIT p_limit FOR UPDATE SKIP LOCKED) due
        LIMIT p_limit);
    RETURN mark_locked(v_ids, 'retention', NULL);
END $$;
