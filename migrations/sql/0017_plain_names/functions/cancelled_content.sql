-- Returns the content of the status_update that says that a turn was cancelled, why and by whom.
-- Locks: none.
-- Callers: claim_turn, write_turn, cancel_turn.

CREATE OR REPLACE FUNCTION cancelled_content(p_reason text, p_by text) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_strip_nulls(jsonb_build_object('status', 'cancelled', 'error_class', p_reason, 'text_code', 'reply_cancelled',
        'by', p_by, 'rolled_back', CASE WHEN p_reason = 'RolledBack' THEN true END))
$$;
