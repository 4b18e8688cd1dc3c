-- Adds p_n times of p_ms milliseconds to a histogram's counts and returns them.
-- Locks: none.
-- Callers: histogram_of.

CREATE OR REPLACE FUNCTION histogram_add(p_counts bigint[], p_ms integer, p_n integer) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    v_bucket integer := width_bucket(p_ms, histogram_bounds());
BEGIN
    IF p_ms IS NOT NULL THEN
        p_counts[v_bucket] := coalesce(p_counts[v_bucket], 0) + p_n;
    END IF;
    RETURN p_counts;
END $$;
