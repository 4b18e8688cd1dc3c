-- Appends events (a JSON array, in order) to a session's log and moves its counters. Returns the offset of the first one.
-- Locks: none of its own; the caller holds the session's row.
-- Callers: store/conversations/intake.py; close_turn, quarantine, reopen_session, abandon_sessions, expire_approvals,
--   expire_approvals_of, decide_approval, set_mode, redrive_turn, release_session.

CREATE OR REPLACE FUNCTION append_events(p_workspace uuid, p_session uuid, p_turn uuid, p_fence bigint, p_events jsonb) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    v_first integer;
    v_count integer := jsonb_array_length(p_events);
BEGIN
    UPDATE sessions SET next_offset = next_offset + v_count, event_count = event_count + v_count, last_activity_at = now()
    WHERE id = p_session RETURNING next_offset - v_count INTO v_first;
    PERFORM insert_events(p_workspace, p_session, p_turn, p_fence, v_first, p_events);
    RETURN v_first;
END $$;
