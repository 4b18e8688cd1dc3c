-- Returns the sum of an array of histograms.
-- Locks: none.
-- Callers: histogram_sum.

CREATE OR REPLACE FUNCTION histogram_total(p_all jsonb[]) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(jsonb_object_agg(bucket, n) FILTER (WHERE n <> 0), '{}')
    FROM (SELECT bucket, sum(n::bigint) AS n FROM unnest(p_all) one, jsonb_each_text(one) counts (bucket, n) GROUP BY bucket) sums
$$;
