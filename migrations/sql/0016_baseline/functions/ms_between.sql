-- Returns the time from p_from to p_to in whole milliseconds, between 0 and 2147483647, as histograms take it. Returns null where
-- either is null.
-- Locks: none.
-- Callers: store/analytics/rollups.py; note_turn, note_older_sessions.

CREATE OR REPLACE FUNCTION ms_between(p_from timestamptz, p_to timestamptz) RETURNS integer
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT greatest(0, least(2147483647, floor(extract(epoch FROM p_to - p_from) * 1000)))::integer
$$;
