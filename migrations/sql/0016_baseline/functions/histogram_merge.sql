-- Returns the sum of two histograms.
-- Locks: none.
-- Callers: store/analytics/rollup_sql.py.

CREATE OR REPLACE FUNCTION histogram_merge(p_one jsonb, p_other jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN p_one = '{}' THEN p_other WHEN p_other = '{}' THEN p_one ELSE (
        SELECT coalesce(jsonb_object_agg(bucket, n) FILTER (WHERE n <> 0), '{}')
        FROM (SELECT key AS bucket, sum(value::bigint) AS n
              FROM (SELECT * FROM jsonb_each_text(p_one) UNION ALL SELECT * FROM jsonb_each_text(p_other)) counts GROUP BY key) sums) END
$$;
