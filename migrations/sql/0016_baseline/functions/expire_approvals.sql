-- Expires the overdue approvals of the given sessions and appends that to their logs. Returns how many. Leaves sessions with a live
-- lease to their worker, and the sessions' last activity as it was. Runs as turnline_maintenance, which cannot read arguments.
-- Locks: the sessions' rows, in the order of their ids (locked ones are skipped), then their approvals.
-- Callers: store/conversations/expiry.py.

CREATE OR REPLACE FUNCTION expire_approvals(p_sessions uuid[]) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    s record;
    t record;
    v_count integer := 0;
BEGIN
    FOR s IN SELECT id, workspace_id, lease_fence, last_activity_at FROM sessions
             WHERE id = ANY (p_sessions) AND deleting_at IS NULL AND (lease_until IS NULL OR lease_until < now())
             ORDER BY id FOR NO KEY UPDATE SKIP LOCKED LOOP
        FOR t IN WITH late AS (UPDATE approvals SET status = 'expired', decided_at = now()
                               WHERE session_id = s.id AND status = 'pending' AND expires_at <= now()
                               RETURNING id, turn_id, tool_call_id, tool_name, decided_at)
                 SELECT turn_id, count(*) AS n, jsonb_agg(jsonb_build_object('kind', 'status_update', 'source', 'system',
                     'content', jsonb_build_object('status', 'approval_decided', 'decision', 'expired', 'approval_id', id,
                         'tool_call_id', tool_call_id, 'tool_name', tool_name, 'decided_at', decided_at))) AS events
                 FROM late GROUP BY turn_id LOOP
            PERFORM append_events(s.workspace_id, s.id, t.turn_id, s.lease_fence, t.events);
            v_count := v_count + t.n;
        END LOOP;
        UPDATE sessions SET last_activity_at = s.last_activity_at WHERE id = s.id;
    END LOOP;
    RETURN v_count;
END $$;
