-- Returns how a turn's last claim ended badly: with an error, or because its worker was lost and the lease ran out. p_asking says that
-- its model call was not answered. Returns null if the claim did not end badly, or if there was none since the last redrive. The detail
-- is the sentence of the error, or an object with a code (see engine/sentences.py).
-- Locks: none.
-- Callers: claim_turn, redrive_turn.

CREATE OR REPLACE FUNCTION last_failure(p_turn uuid, p_asking boolean) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('claimed_at', t.claimed_at) || CASE t.status
        WHEN 'running' THEN jsonb_build_object('error_class', 'WorkerLost', 'detail', CASE
            WHEN p_asking THEN jsonb_build_object('code', 'waited_for_model')
            ELSE (SELECT jsonb_build_object('code', 'waited_for_tools', 'tools', jsonb_agg(tool_name ORDER BY position))
                  FROM tool_calls WHERE turn_id = p_turn AND state = 'running' HAVING count(*) > 0) END)
        ELSE jsonb_build_object('error_class', t.error_class, 'detail', t.error_detail) END
    FROM turns t WHERE t.id = p_turn AND t.started_at IS NOT NULL AND (t.status = 'running' OR t.error_class IS NOT NULL)
$$;
