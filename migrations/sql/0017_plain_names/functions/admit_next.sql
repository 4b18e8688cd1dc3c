-- Admits the turn to dispatch after a turn of p_session has ended or parked: the session's first open turn or, if that cannot run, the
-- oldest pending turn of the workspace. Returns it, or null. The caller dispatches it after the commit.
-- Locks: the admitted turn's row; a pending turn of another session is skipped if it is locked; the caller holds the session's row.
-- Callers: claim_turn, write_turn, cancel_turns.

CREATE OR REPLACE FUNCTION admit_next(p_workspace uuid, p_session uuid) RETURNS uuid
LANGUAGE plpgsql AS $$
DECLARE
    v_turn uuid;
BEGIN
    UPDATE turns SET admission = 'admitted' FROM sessions s
    WHERE turns.id = (SELECT id FROM turns WHERE session_id = p_session AND status IN ('queued', 'running', 'waiting')
                      ORDER BY opened_at_offset LIMIT 1)
        AND s.id = p_session AND s.mode = 'auto' AND s.quarantined_at IS NULL
        AND turns.status = 'queued' AND (turns.not_before IS NULL OR turns.not_before <= now())
    RETURNING turns.id INTO v_turn;
    IF v_turn IS NULL THEN
        UPDATE turns SET admission = 'admitted'
        WHERE id = (SELECT t.id FROM turns t JOIN sessions s ON s.id = t.session_id
                    WHERE t.workspace_id = p_workspace AND t.admission = 'pending' AND t.status = 'queued'
                        AND (t.not_before IS NULL OR t.not_before <= now())
                        AND s.mode = 'auto' AND s.quarantined_at IS NULL AND (s.lease_until IS NULL OR s.lease_until < now())
                    ORDER BY t.opened_at LIMIT 1 FOR UPDATE OF t SKIP LOCKED)
        RETURNING id INTO v_turn;
    END IF;
    RETURN v_turn;
END $$;
