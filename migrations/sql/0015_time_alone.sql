-- As of 0012, but that what time alone does is no activity: retention and `last_active_at` do not count from it.

-- Give up those of p_sessions in which nothing has happened for p_idle_s seconds, nothing is open and nobody has to look; how many. They
-- ended with the last thing that happened in them. As turnline_maintenance.
CREATE OR REPLACE FUNCTION abandon_sessions(p_sessions uuid[], p_idle_s double precision) RETURNS integer LANGUAGE plpgsql AS $$
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

-- Let approvals of these sessions expire whose time has run out, and say so in their logs; how many. A session that a worker carries is left
-- to the worker. As turnline_maintenance, which sees no arguments; nobody has decided, so there is nothing else to say.
CREATE OR REPLACE FUNCTION expire_approvals(p_sessions uuid[]) RETURNS integer LANGUAGE plpgsql AS $$
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
