-- Lifts a session's quarantine, so that its turns run again. o_outcome: released, unchanged, not_found. o_dispatch is the turn to
-- dispatch after the commit.
-- Locks: the session's row, then its first open turn.
-- Callers: store/conversations/redrive.py.

CREATE OR REPLACE FUNCTION release_session(
    p_workspace uuid, p_session uuid, p_by text, p_window integer, OUT o_outcome text, OUT o_offset integer, OUT o_dispatch uuid)
LANGUAGE plpgsql AS $$
DECLARE
    s record;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    SELECT quarantined_at, lease_fence INTO s FROM sessions WHERE id = p_session FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        o_outcome := 'not_found';
        RETURN;
    ELSIF s.quarantined_at IS NULL THEN
        o_outcome := 'unchanged';
        RETURN;
    END IF;
    UPDATE sessions SET quarantined_at = NULL, dead_in_row = 0 WHERE id = p_session;
    o_offset := append_events(p_workspace, p_session, NULL, s.lease_fence, jsonb_build_array(jsonb_build_object(
        'kind', 'status_update', 'source', 'system', 'content', jsonb_build_object('status', 'released', 'by', p_by))));
    o_dispatch := admit_first(p_workspace, p_session, p_window);
    o_outcome := 'released';
END $$;
