-- Replaces what a model call held of its budgets by what it cost, or spends the whole hold where its cost or its tokens are not known.
-- A failed call costs nothing. A call of unknown outcome keeps its hold, because it may have been billed.
-- Locks: the budgets, in the order of their ids, then the holds; the caller holds the session's row.
-- Callers: write_turn.

CREATE OR REPLACE FUNCTION settle_budgets(p_turn uuid, p_step integer, p_attempt integer, p_state text, p_cost numeric, p_tokens bigint)
RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_state = 'unknown' THEN
        RETURN;
    END IF;
    PERFORM 1 FROM budgets WHERE id IN (SELECT budget_id FROM budget_holds WHERE turn_id = p_turn AND step = p_step AND attempt = p_attempt)
    ORDER BY id FOR UPDATE;
    WITH back AS (DELETE FROM budget_holds WHERE turn_id = p_turn AND step = p_step AND attempt = p_attempt RETURNING *)
    UPDATE budgets SET reserved = reserved - back.amount, updated_at = now(),
        spent = spent + CASE WHEN p_state = 'failed' THEN 0 WHEN unit = 'usd' THEN coalesce(p_cost, back.amount)
                             ELSE coalesce(nullif(p_tokens, 0), back.amount) END
    FROM back WHERE budgets.id = back.budget_id AND (period = 'total' OR budgets.day = back.day);
END $$;
