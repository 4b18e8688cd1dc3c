-- Admits the session's first open turn if it may run now and the workspace is below its in-flight limit (p_window), and returns it. At
-- the limit the turn becomes pending, and the result is null.
-- Locks: the session's first open turn; the caller holds the session's row.
-- Callers: accept_message, set_mode, redrive_turn, release_session.

CREATE OR REPLACE FUNCTION admit_first(p_workspace uuid, p_session uuid, p_window integer) RETURNS uuid
LANGUAGE plpgsql AS $$
DECLARE
    v_turn uuid;
    v_admission text;
BEGIN
    UPDATE turns SET admission = CASE WHEN p_window <= (SELECT count(*) FROM (SELECT 1 FROM turns g
                WHERE g.workspace_id = p_workspace AND g.admission = 'admitted' AND g.status IN ('queued', 'running') LIMIT p_window) w)
            THEN 'pending' ELSE 'admitted' END
    FROM sessions s
    WHERE turns.id = (SELECT id FROM turns WHERE session_id = p_session AND status IN ('queued', 'running', 'waiting')
                      ORDER BY opened_at_offset LIMIT 1)
        AND s.id = p_session AND s.mode = 'auto' AND s.quarantined_at IS NULL
        AND turns.status = 'queued' AND turns.admission <> 'admitted' AND (turns.not_before IS NULL OR turns.not_before <= now())
    RETURNING turns.id, turns.admission INTO v_turn, v_admission;
    RETURN CASE WHEN v_admission = 'admitted' THEN v_turn END;
END $$;
