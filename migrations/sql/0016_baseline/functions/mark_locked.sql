-- Marks the given sessions for deletion, except those with an open turn, and starts their `deletions` rows. Returns how many. It looks
-- for open turns after the sessions were locked, so that none can be opened meanwhile.
-- Locks: none of its own; the caller holds the sessions' rows.
-- Callers: mark_expired, mark_erased.

CREATE OR REPLACE FUNCTION mark_locked(p_sessions uuid[], p_reason text, p_erasure uuid) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    v_count integer;
BEGIN
    UPDATE sessions SET deleting_at = now()
    WHERE id = ANY (p_sessions)
        AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.session_id = sessions.id AND t.status IN ('queued', 'running', 'waiting'));
    GET DIAGNOSTICS v_count = ROW_COUNT;
    INSERT INTO deletions (session_id, workspace_id, agent_id, reason, erasure_id)
    SELECT id, workspace_id, agent_id, p_reason, p_erasure FROM sessions WHERE id = ANY (p_sessions) AND deleting_at = now();
    RETURN v_count;
END $$;
