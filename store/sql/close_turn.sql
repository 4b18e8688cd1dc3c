-- Ends an open turn that no worker will write any more. It gives the turn's open tool calls their results, cancels its pending
-- approvals, appends the last status_update and sets status and reason. Quarantines the session after three dead turns in a row. If
-- the turn was running, the caller has raised the session's fence.
-- Locks: the turn's model calls, tool calls and approvals, then the turn; the caller holds the session's row.
-- Callers: claim_turn, write_turn, cancel_turn.

CREATE OR REPLACE FUNCTION close_turn(
    p_workspace uuid, p_session uuid, p_turn uuid, p_fence bigint, p_status text, p_error_class text, p_error_detail text, p_content jsonb)
RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_lost integer;
    v_opened integer;
    v_dead integer;
BEGIN
    UPDATE model_calls SET state = 'unknown', settled_at = now(), error_class = 'ReplyLost' WHERE turn_id = p_turn AND state = 'reserved';
    GET DIAGNOSTICS v_lost = ROW_COUNT;
    PERFORM append_events(p_workspace, p_session, p_turn, p_fence, results || jsonb_build_array(jsonb_build_object(
        'kind', 'status_update', 'source', 'system',
        'content', jsonb_build_object('status', p_status, 'error_class', p_error_class) || p_content)))
    FROM (SELECT coalesce(jsonb_agg(jsonb_build_object('kind', 'tool_result', 'source', 'system',
            'content', jsonb_build_object('tool_call_id', c.tool_call_id, 'tool_name', c.tool_name,
                'status', CASE c.state WHEN 'running' THEN 'unknown' ELSE 'denied' END,
                'error_code', CASE c.state WHEN 'running' THEN 'result_lost' ELSE 'not_made' END)) ORDER BY c.step, c.position), '[]') AS results
          FROM tool_calls c WHERE c.turn_id = p_turn AND c.state IN ('requested', 'awaiting_approval', 'running')) r;
    UPDATE tool_calls SET state = CASE state WHEN 'running' THEN 'unknown' ELSE 'denied' END, settled_at = now(), error = 'turn_ended'
    WHERE turn_id = p_turn AND state IN ('requested', 'awaiting_approval', 'running');
    UPDATE approvals SET status = 'cancelled', decided_at = now() WHERE turn_id = p_turn AND status = 'pending';
    SELECT opened_at_offset INTO v_opened FROM turns WHERE id = p_turn;
    UPDATE turns SET status = p_status, error_class = p_error_class, error_detail = p_error_detail, not_before = NULL, settled_at = now(),
        updated_at = now(), read_through_offset = last_read_offset(p_session, v_opened, turn_end_offset(p_session, v_opened))
    WHERE id = p_turn;
    UPDATE sessions SET unknown_calls = unknown_calls + v_lost,
        dead_in_row = CASE p_status WHEN 'dead' THEN dead_in_row + 1 ELSE dead_in_row END
    WHERE id = p_session RETURNING dead_in_row INTO v_dead;
    UPDATE sessions SET lease_owner = NULL, lease_until = NULL  -- unless another turn has the lease
    WHERE id = p_session AND NOT EXISTS (SELECT 1 FROM turns WHERE session_id = p_session AND status = 'running');
    IF p_status = 'dead' AND v_dead >= 3 THEN
        PERFORM quarantine(p_workspace, p_session, p_fence);
    END IF;
END $$;
