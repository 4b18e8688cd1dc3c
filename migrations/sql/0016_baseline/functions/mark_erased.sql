-- Marks for deletion those of the given sessions that may be erased: ended, not held, counted, with no open turn and no live lease.
-- Returns how many. Runs as turnline_maintenance.
-- Locks: the sessions' rows, in the order of their ids; locked ones are skipped.
-- Callers: store/retention/erasure.py.

CREATE OR REPLACE FUNCTION mark_erased(p_sessions uuid[], p_erasure uuid) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    v_ids uuid[];
BEGIN
    v_ids := ARRAY(SELECT id FROM sessions
                   WHERE id = ANY (p_sessions) AND deleting_at IS NULL AND held_at IS NULL AND status <> 'active' AND counted
                       AND (lease_until IS NULL OR lease_until < now())
                   ORDER BY id FOR UPDATE SKIP LOCKED);
    RETURN mark_locked(v_ids, 'erase', p_erasure);
END $$;
