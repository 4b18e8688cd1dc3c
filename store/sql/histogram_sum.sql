-- Aggregate: the sum of histograms. It collects them and adds them up once, because merging pair by pair reads each sum again.
-- Locks: none.
-- Callers: store/analytics/rollup_sql.py.

CREATE OR REPLACE AGGREGATE histogram_sum(jsonb) (
    SFUNC = array_append, STYPE = jsonb[], INITCOND = '{}', FINALFUNC = histogram_total, PARALLEL = SAFE);
