-- Inserts events (a JSON array, in order) into a session's log from offset p_first on. The caller moves the session's counters.
-- Locks: none of its own; the caller holds the session's row.
-- Callers: append_events, write_turn.

CREATE OR REPLACE FUNCTION insert_events(p_workspace uuid, p_session uuid, p_turn uuid, p_fence bigint, p_first integer, p_events jsonb)
RETURNS void
LANGUAGE sql AS $$
    INSERT INTO events (workspace_id, session_id, "offset", kind, source, content, metadata, turn_id, tool_call_id, fence)
    SELECT p_workspace, p_session, p_first + n - 1, e->>'kind', e->>'source', e->'content', coalesce(e->'metadata', '{}'),
        p_turn, e->'content'->>'tool_call_id', p_fence
    FROM jsonb_array_elements(p_events) WITH ORDINALITY AS x (e, n)
$$;
