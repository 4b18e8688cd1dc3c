-- Histograms merged all at once: pair by pair, each merge read again what all those before it had come to.
CREATE FUNCTION histogram_total(p_all jsonb[]) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(jsonb_object_agg(bucket, n) FILTER (WHERE n <> 0), '{}')
    FROM (SELECT bucket, sum(n::bigint) AS n FROM unnest(p_all) one, jsonb_each_text(one) counts (bucket, n) GROUP BY bucket) sums
$$;

CREATE OR REPLACE AGGREGATE histogram_sum(jsonb) (
    SFUNC = array_append, STYPE = jsonb[], INITCOND = '{}', FINALFUNC = histogram_total, PARALLEL = SAFE);

-- While an agent's days are being cut in another time zone: those before this one are.
ALTER TABLE agent_rollups ADD COLUMN days_cut_to date;
