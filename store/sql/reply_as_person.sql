-- Stores a message of a person, written as themselves or on the agent's behalf. It opens no turn. Reopens an abandoned session.
-- o_outcome: accepted, repeated, conflict, no_session, session_ended.
-- Locks: the session's row.
-- Callers: store/conversations/session_control.py.

CREATE OR REPLACE FUNCTION reply_as_person(
    p_workspace uuid, p_session uuid, p_source text, p_content jsonb, p_metadata jsonb, p_key text,
    OUT o_outcome text, OUT o_event_id uuid, OUT o_offset integer, OUT o_created_at timestamptz)
LANGUAGE plpgsql AS $$
DECLARE
    s record;
    v_same boolean;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    SELECT status, lease_fence INTO s FROM sessions WHERE id = p_session FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        o_outcome := 'no_session';
        RETURN;
    END IF;
    IF p_key IS NOT NULL THEN
        SELECT e.id, e."offset", e.created_at, e.source = p_source AND e.content->'text' = p_content->'text'
        INTO o_event_id, o_offset, o_created_at, v_same FROM events e WHERE e.session_id = p_session AND e.message_key = p_key;
        IF FOUND THEN
            o_outcome := CASE WHEN v_same THEN 'repeated' ELSE 'conflict' END;
            RETURN;
        END IF;
    END IF;
    IF s.status = 'completed' THEN
        o_outcome := 'session_ended';
        RETURN;
    ELSIF s.status = 'abandoned' THEN
        PERFORM reopen_session(p_workspace, p_session, s.lease_fence);
    END IF;
    UPDATE sessions SET next_offset = next_offset + 1, event_count = event_count + 1, message_count = message_count + 1,
        last_activity_at = now()
    WHERE id = p_session RETURNING next_offset - 1 INTO o_offset;
    INSERT INTO events (workspace_id, session_id, "offset", kind, source, content, metadata, message_key, fence)
    VALUES (p_workspace, p_session, o_offset, 'agent_message', p_source, p_content, p_metadata, p_key, s.lease_fence)
    RETURNING id, created_at INTO o_event_id, o_created_at;
    o_outcome := 'accepted';
END $$;
