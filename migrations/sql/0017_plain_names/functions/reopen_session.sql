-- Makes an abandoned session active again and appends that to its log.
-- Locks: none of its own; the caller holds the session's row.
-- Callers: accept_message, reply_as_person, redrive_turn.

CREATE OR REPLACE FUNCTION reopen_session(p_workspace uuid, p_session uuid, p_fence bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE sessions SET status = 'active', ended_at = NULL, updated_at = now() WHERE id = p_session;
    PERFORM append_events(p_workspace, p_session, NULL, p_fence,
        '[{"kind": "status_update", "source": "system", "content": {"status": "reopened"}}]');
END $$;
