-- Runs a dead or failed turn again: from its last step, or (p_scratch) from its messages. Lifts the session's quarantine and reopens an
-- abandoned session. o_outcome: redriven, not_found, not_ended (still open), answered, cancelled, answered_later, unsafe_ran,
-- session_ended, manual. o_dispatch is the turn to dispatch after the commit.
-- Locks: the session's row, then its turns.
-- Callers: store/conversations/redrive.py.

CREATE OR REPLACE FUNCTION redrive_turn(
    p_workspace uuid, p_turn uuid, p_scratch boolean, p_by text, p_window integer,
    OUT o_outcome text, OUT o_session uuid, OUT o_offset integer, OUT o_dispatch uuid)
LANGUAGE plpgsql AS $$
DECLARE
    s record;
    t record;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    SELECT session_id INTO o_session FROM turns WHERE id = p_turn;
    IF NOT FOUND THEN
        o_outcome := 'not_found';
        RETURN;
    END IF;
    SELECT status, lease_fence, mode INTO s FROM sessions WHERE id = o_session FOR NO KEY UPDATE;
    SELECT status, opened_at_offset INTO t FROM turns WHERE id = p_turn;
    o_outcome := CASE
        WHEN t.status = 'done' THEN 'answered'
        WHEN t.status = 'cancelled' THEN 'cancelled'
        WHEN t.status NOT IN ('dead', 'failed') THEN 'not_ended'
        WHEN s.status = 'completed' THEN 'session_ended'
        WHEN s.mode = 'manual' THEN 'manual'
        WHEN EXISTS (SELECT 1 FROM turns WHERE session_id = o_session AND opened_at_offset > t.opened_at_offset
                     AND status IN ('running', 'waiting', 'done')) THEN 'answered_later'
        WHEN p_scratch AND EXISTS (SELECT 1 FROM tool_calls c WHERE turn_id = p_turn
                     AND coalesce(effect, (SELECT l.effect FROM tools l WHERE l.id = c.tool_id)) = 'unsafe'
                     AND (state IN ('running', 'succeeded', 'unknown') OR state = 'failed' AND attempts > 0)) THEN 'unsafe_ran'
        ELSE 'redriven' END;
    IF o_outcome <> 'redriven' THEN
        RETURN;
    END IF;
    IF s.status = 'abandoned' THEN
        PERFORM reopen_session(p_workspace, o_session, s.lease_fence);
    END IF;
    PERFORM append_events(p_workspace, o_session, p_turn, s.lease_fence, jsonb_build_array(jsonb_build_object(
        'kind', 'status_update', 'source', 'system', 'content',
        jsonb_build_object('status', 'redriven', 'from_scratch', p_scratch, 'by', p_by))));
    UPDATE sessions SET quarantined_at = NULL, dead_in_row = 0 WHERE id = o_session RETURNING next_offset - 1 INTO o_offset;
    UPDATE turns SET status = 'queued', attempts = 0, redrives = redrives + 1, not_before = NULL, dispatched_at = NULL, dispatch_count = 0,
        admission = 'blocked', endings = jsonb_path_query_array(endings || coalesce(last_failure(p_turn, false), '[]'),
            '$[last - 19 to last]'),
        error_class = NULL, error_detail = NULL, settled_at = NULL, read_through_offset = NULL, started_at = NULL,
        running_s = 0, cancel_requested_at = NULL, cancel_reason = NULL, cancelled_by = NULL, updated_at = now(),
        agent_digest = CASE WHEN p_scratch THEN NULL ELSE agent_digest END
    WHERE id = p_turn;
    o_dispatch := admit_first(p_workspace, o_session, p_window);
END $$;
