-- Returns an amount of dollars or tokens as text for a sentence.
-- Locks: none.
-- Callers: reserve_budgets.

CREATE OR REPLACE FUNCTION format_amount(p_amount numeric, p_unit text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE p_unit WHEN 'usd' THEN '$' || trim_scale(p_amount) ELSE trim_scale(p_amount) || ' tokens' END
$$;
