-- Cancels one open turn (p_turn), or every open turn of a session (p_turn is null). o_outcome: cancelled (ended now), cancelling (a
-- worker runs it and ends it within a second), settled (nothing was open), not_found. o_dispatch is the turn to dispatch after the commit.
-- Locks: the session's row, then its turns in the order of their offsets, then one waiting turn of another session (see admit_next).
-- Callers: store/conversations/session_control.py.

CREATE OR REPLACE FUNCTION cancel_turns(
    p_workspace uuid, p_session uuid, p_turn uuid, p_by text, OUT o_outcome text, OUT o_session uuid, OUT o_offset integer, OUT o_dispatch uuid)
LANGUAGE plpgsql AS $$
DECLARE
    v_ended integer;
    v_flagged integer;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    o_session := coalesce(p_session, (SELECT session_id FROM turns WHERE id = p_turn));
    PERFORM 1 FROM sessions WHERE id = o_session FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        o_outcome := 'not_found';
        RETURN;
    END IF;
    SELECT count(*) FILTER (WHERE ended), count(*) FILTER (WHERE NOT ended) INTO v_ended, v_flagged
    FROM (SELECT cancel_turn(p_workspace, o_session, o.id, 'Cancelled', p_by) AS ended
          FROM (SELECT id FROM turns WHERE session_id = o_session AND (p_turn IS NULL OR id = p_turn)
                    AND status IN ('queued', 'running', 'waiting') ORDER BY opened_at_offset) o) x;
    o_outcome := CASE WHEN v_flagged > 0 THEN 'cancelling' WHEN v_ended > 0 THEN 'cancelled' ELSE 'settled' END;
    SELECT next_offset - 1 INTO o_offset FROM sessions WHERE id = o_session;
    IF v_ended > 0 THEN
        o_dispatch := admit_next(p_workspace, o_session);
    END IF;
END $$;
