-- Cancels an open turn. If a worker runs it, the turn is flagged, and the worker ends it within half a second. Otherwise it ends at
-- once. Returns whether it has ended.
-- Locks: the turn's row, then what close_turn locks; the caller holds the session's row.
-- Callers: accept_message, cancel_turns, set_mode.

CREATE OR REPLACE FUNCTION cancel_turn(p_workspace uuid, p_session uuid, p_turn uuid, p_reason text, p_by text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    v_running boolean;
    v_leased boolean;
    v_fence bigint;
BEGIN
    SELECT t.status = 'running', s.lease_until > now(), s.lease_fence INTO v_running, v_leased, v_fence
    FROM turns t JOIN sessions s ON s.id = t.session_id WHERE t.id = p_turn;
    UPDATE turns SET cancel_requested_at = now(), cancel_reason = p_reason, cancelled_by = p_by, updated_at = now()
    WHERE id = p_turn AND cancel_requested_at IS NULL;
    IF v_running AND v_leased THEN
        RETURN false;
    END IF;
    IF v_running THEN  -- its worker is gone or stalled: the new fence refuses its later writes
        v_fence := v_fence + 1;
        UPDATE sessions SET lease_fence = v_fence WHERE id = p_session;
    END IF;
    PERFORM close_turn(p_workspace, p_session, p_turn, v_fence, 'cancelled', p_reason, NULL, cancelled_content(p_reason, p_by));
    RETURN true;
END $$;
