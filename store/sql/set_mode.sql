-- Changes who answers in a session. manual ends every open turn, because a person answers now. auto dispatches the first open turn. paused
-- lets no turn start; a running turn parks at its next commit. o_outcome: switched, unchanged, session_ended, not_found. o_dispatch is the
-- turn to dispatch after the commit.
-- Locks: the session's row, then its turns in the order of their offsets.
-- Callers: store/conversations/session_control.py.

CREATE OR REPLACE FUNCTION set_mode(
    p_workspace uuid, p_session uuid, p_mode text, p_by text, p_window integer,
    OUT o_outcome text, OUT o_offset integer, OUT o_dispatch uuid)
LANGUAGE plpgsql AS $$
DECLARE
    s record;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    SELECT mode, status, lease_fence INTO s FROM sessions WHERE id = p_session FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        o_outcome := 'not_found';
        RETURN;
    ELSIF s.mode = p_mode THEN
        o_outcome := 'unchanged';
        RETURN;
    ELSIF s.status <> 'active' THEN
        o_outcome := 'session_ended';
        RETURN;
    END IF;
    UPDATE sessions SET mode = p_mode, updated_at = now() WHERE id = p_session;
    PERFORM append_events(p_workspace, p_session, NULL, s.lease_fence, jsonb_build_array(jsonb_build_object(
        'kind', 'status_update', 'source', 'system', 'content',
        jsonb_build_object('status', 'mode', 'mode', p_mode, 'previous', s.mode, 'by', p_by))));
    IF p_mode = 'manual' THEN
        PERFORM cancel_turn(p_workspace, p_session, o.id, 'TakenOver', p_by)
        FROM (SELECT id FROM turns WHERE session_id = p_session AND status IN ('queued', 'running', 'waiting')
              ORDER BY opened_at_offset) o;
    ELSIF p_mode = 'paused' THEN
        UPDATE turns SET admission = 'pending' WHERE session_id = p_session AND status = 'queued' AND admission = 'admitted';
    ELSE
        o_dispatch := admit_first(p_workspace, p_session, p_window);
    END IF;
    SELECT next_offset - 1 INTO o_offset FROM sessions WHERE id = p_session;
    o_outcome := 'switched';
END $$;
