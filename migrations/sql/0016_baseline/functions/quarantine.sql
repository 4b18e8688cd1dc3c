-- Puts a session into quarantine and appends that to its log. Its turns wait for an operator; other sessions go on. It is called after
-- three dead turns in a row.
-- Locks: none of its own; the caller holds the session's row.
-- Callers: close_turn.

CREATE OR REPLACE FUNCTION quarantine(p_workspace uuid, p_session uuid, p_fence bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE sessions SET quarantined_at = now() WHERE id = p_session AND quarantined_at IS NULL;
    IF FOUND THEN
        PERFORM append_events(p_workspace, p_session, NULL, p_fence, jsonb_build_array(jsonb_build_object(
            'kind', 'status_update', 'source', 'system', 'content', jsonb_build_object('status', 'quarantined'))));
    END IF;
END $$;
