-- Reserves the most that a model call may cost of every budget that it counts against, after giving back what the same call had reserved
-- before. Returns null if all of them have room. Otherwise it reserves nothing and returns an object: the code budget_spent or
-- budget_without_price, with the fields of the budget that its sentence names. p_usd is null if no price is known.
-- Locks: the budgets, in the order of their ids; the caller holds the session's row.
-- Callers: write_turn.

CREATE OR REPLACE FUNCTION reserve_budgets(
    p_workspace uuid, p_agent uuid, p_session uuid, p_turn uuid, p_step integer, p_attempt integer, p_usd numeric, p_tokens bigint)
RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    b budgets;
    v_today date := (now() AT TIME ZONE 'UTC')::date;
    v_amount numeric;
    v_ids uuid[];
BEGIN
    IF p_tokens IS NULL OR NOT EXISTS (SELECT 1 FROM budgets_of(p_workspace, p_agent, p_session)) THEN
        RETURN NULL;
    END IF;
    -- A budget that is created meanwhile counts from the next call on.
    SELECT array_agg(id) INTO v_ids
    FROM (SELECT id FROM budgets WHERE id IN (SELECT id FROM budgets_of(p_workspace, p_agent, p_session)) ORDER BY id FOR UPDATE) locked;
    UPDATE budgets SET day = v_today, spent = 0, reserved = 0 WHERE id = ANY (v_ids) AND period = 'day' AND day < v_today;
    WITH back AS (DELETE FROM budget_holds WHERE turn_id = p_turn AND step = p_step AND attempt = p_attempt RETURNING *)
    UPDATE budgets SET reserved = reserved - back.amount FROM back
    WHERE budgets.id = back.budget_id AND (period = 'total' OR budgets.day = back.day);
    FOR b IN SELECT * FROM budgets WHERE id = ANY (v_ids) ORDER BY id LOOP
        v_amount := CASE b.unit WHEN 'usd' THEN p_usd ELSE p_tokens END;
        IF v_amount IS NULL THEN
            RETURN jsonb_build_object('code', 'budget_without_price', 'scope', b.scope);
        ELSIF b.spent + b.reserved + v_amount > b.cap THEN
            RETURN jsonb_build_object('code', 'budget_spent', 'scope', b.scope, 'period', b.period, 'unit', b.unit,
                'cap', trim_scale(b.cap)::text, 'spent', trim_scale(b.spent)::text, 'reserved', trim_scale(b.reserved)::text,
                'requested', trim_scale(v_amount)::text);
        END IF;
    END LOOP;
    UPDATE budgets SET reserved = reserved + CASE unit WHEN 'usd' THEN p_usd ELSE p_tokens END, updated_at = now() WHERE id = ANY (v_ids);
    INSERT INTO budget_holds (turn_id, step, attempt, budget_id, workspace_id, amount, day)
    SELECT p_turn, p_step, p_attempt, id, p_workspace, CASE unit WHEN 'usd' THEN p_usd ELSE p_tokens END, v_today
    FROM budgets WHERE id = ANY (v_ids);
    RETURN NULL;
END $$;
