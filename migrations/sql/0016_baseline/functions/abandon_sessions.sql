-- Marks as abandoned those of the given sessions that have been idle for p_idle_s seconds, with no open turn, no live lease and no
-- quarantine. Returns how many. ended_at becomes the time of their last activity, which stays as it was. Runs as turnline_maintenance.
-- Locks: the sessions' rows, in the order of their ids; a row that somebody else has locked is skipped.
-- Callers: store/conversations/expiry.py.

CREATE OR REPLACE FUNCTION abandon_sessions(p_sessions uuid[], p_idle_s double precision) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    s record;
    v_count integer := 0;
BEGIN
    FOR s IN SELECT id, workspace_id, lease_fence, last_activity_at FROM sessions
             WHERE id = ANY (p_sessions) AND status = 'active' AND deleting_at IS NULL AND quarantined_at IS NULL
                AND last_activity_at < now() - make_interval(secs => p_idle_s) AND (lease_until IS NULL OR lease_until < now())
             ORDER BY id FOR NO KEY UPDATE SKIP LOCKED LOOP
        CONTINUE WHEN EXISTS (SELECT 1 FROM turns WHERE session_id = s.id AND status IN ('queued', 'running', 'waiting'));
        PERFORM append_events(s.workspace_id, s.id, NULL, s.lease_fence,
            '[{"kind": "status_update", "source": "system", "content": {"status": "abandoned"}}]');
        UPDATE sessions SET status = 'abandoned', ended_at = s.last_activity_at, last_activity_at = s.last_activity_at, updated_at = now()
        WHERE id = s.id;
        v_count := v_count + 1;
    END LOOP;
    RETURN v_count;
END $$;
