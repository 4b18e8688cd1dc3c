-- Aggregate: the histogram of times in milliseconds, each counted p_n times, as {"bucket" : count}.
-- Locks: none.
-- Callers: store/analytics/rollup_sql.py.

CREATE OR REPLACE AGGREGATE histogram_of(p_ms integer, p_n integer) (
    SFUNC = histogram_add, STYPE = bigint[], INITCOND = '{}', FINALFUNC = histogram_to_json, PARALLEL = SAFE);
