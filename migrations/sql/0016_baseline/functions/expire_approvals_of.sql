-- Expires a turn's overdue approvals and appends that to the log.
-- Locks: the turn's approvals; the caller holds the session's row.
-- Callers: claim_turn.

CREATE OR REPLACE FUNCTION expire_approvals_of(p_workspace uuid, p_session uuid, p_turn uuid, p_fence bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_events jsonb;
BEGIN
    WITH late AS (UPDATE approvals SET status = 'expired', decided_at = now()
                  WHERE turn_id = p_turn AND status = 'pending' AND expires_at <= now() RETURNING *)
    SELECT jsonb_agg(decision_event(late, 'expired')) INTO v_events FROM late;
    IF v_events IS NOT NULL THEN
        PERFORM append_events(p_workspace, p_session, p_turn, p_fence, v_events);
    END IF;
END $$;
