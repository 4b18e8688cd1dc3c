-- Returns the offset at which the session's next turn opens, which is where the log of the turn opened at p_opened ends (exclusive).
-- Locks: none.
-- Callers: claim_turn, write_turn, close_turn.

CREATE OR REPLACE FUNCTION turn_end_offset(p_session uuid, p_opened integer) RETURNS integer
LANGUAGE sql STABLE AS $$
    SELECT coalesce(min(opened_at_offset), 2147483647) FROM turns WHERE session_id = p_session AND opened_at_offset > p_opened
$$;
