-- Returns the offset of the last customer message that belongs to the turn opened at p_opened and ending before p_upper, or null.
-- Locks: none.
-- Callers: claim_turn, write_turn, close_turn.

CREATE OR REPLACE FUNCTION last_read_offset(p_session uuid, p_opened integer, p_upper integer) RETURNS integer
LANGUAGE sql STABLE AS $$
    SELECT max("offset") FROM events
    WHERE session_id = p_session AND kind = 'customer_message' AND "offset" >= p_opened AND "offset" < p_upper
$$;
