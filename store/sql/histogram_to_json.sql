-- Returns a histogram's counts as {"bucket" : count}, without empty buckets.
-- Locks: none.
-- Callers: histogram_of.

CREATE OR REPLACE FUNCTION histogram_to_json(p_counts bigint[]) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(jsonb_object_agg(bucket, p_counts[bucket]) FILTER (WHERE p_counts[bucket] <> 0), '{}')
    FROM generate_subscripts(p_counts, 1) bucket
$$;
