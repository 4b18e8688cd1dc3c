-- Returns how the work of all workspaces stands, for operators' gauges: counts, ages in seconds and times in seconds since 1970. It
-- names no tenant. Its cost is bounded: it counts at most 100,000 open turns, reads job runs by their index and reads no settled turn
-- except for backpressure.
-- Locks: none.
-- Callers: store/operations/system_stats.py.

-- turnline_maintenance owns it: SECURITY DEFINER gives it that role's column rights and no more.
GRANT CREATE ON SCHEMA public TO turnline_maintenance;
SET LOCAL ROLE turnline_maintenance;

CREATE OR REPLACE FUNCTION system_stats() RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
WITH RECURSIVE open AS (
    SELECT status, session_id, opened_at FROM turns WHERE status IN ('queued', 'running', 'waiting') LIMIT 100000),
jobs (job) AS (
    SELECT min(job) FROM job_runs
    UNION ALL SELECT (SELECT min(r.job) FROM job_runs r WHERE r.job > jobs.job) FROM jobs WHERE jobs.job IS NOT NULL)
SELECT jsonb_build_object(
    'turns', (SELECT jsonb_object_agg(status, jsonb_build_object('count', n, 'oldest_s', oldest_s)) FROM (
        SELECT status, count(*) AS n, extract(epoch FROM now() - min(opened_at)) AS oldest_s FROM open GROUP BY status) by_status),
    'behind_s', (SELECT o_behind_s FROM backpressure(NULL, NULL, NULL, 86400)),
    'leases', (SELECT jsonb_build_object('live', count(*) FILTER (WHERE s.lease_until > now()),
            'run_out', count(*) FILTER (WHERE s.lease_until IS NULL OR s.lease_until <= now()))
        FROM open o JOIN sessions s ON s.id = o.session_id WHERE o.status = 'running'),
    'integrations', (SELECT jsonb_object_agg(health_status, n) FROM (
        SELECT health_status, count(*) AS n FROM tool_integrations WHERE enabled GROUP BY health_status) by_health),
    'jobs', (SELECT jsonb_object_agg(j.job, jsonb_build_object(
            'succeeded_at', done.at, 'seconds', done.seconds, 'failed_at', failed.at))
        FROM jobs j
        LEFT JOIN LATERAL (SELECT extract(epoch FROM finished_at) AS at, extract(epoch FROM finished_at - started_at) AS seconds
            FROM job_runs r WHERE r.job = j.job AND finished_at IS NOT NULL AND error IS NULL AND NOT dry_run
            ORDER BY id DESC LIMIT 1) done ON true
        LEFT JOIN LATERAL (SELECT extract(epoch FROM coalesce(finished_at, seen_at)) AS at FROM job_runs r
            WHERE r.job = j.job AND (error IS NOT NULL OR finished_at IS NULL AND seen_at < now() - interval '120 seconds')
            ORDER BY id DESC LIMIT 1) failed ON true
        WHERE j.job IS NOT NULL),
    'audit', (SELECT jsonb_build_object('finished_at', extract(epoch FROM finished_at), 'violations',
            (SELECT coalesce(sum((found->>'count')::bigint), 0) FROM jsonb_each(violations) AS v (name, found)))
        FROM audits WHERE finished_at IS NOT NULL AND error IS NULL ORDER BY id DESC LIMIT 1),
    'workers', (SELECT jsonb_build_object('seen', count(*) FILTER (WHERE seen_at > now() - interval '60 seconds'),
            'stalled', count(*) FILTER (WHERE stalled_at > now() - interval '1 day')) FROM workers))
$$;

REVOKE ALL ON FUNCTION system_stats() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION system_stats() TO turnline_app;
SET LOCAL ROLE turnline_owner;
REVOKE CREATE ON SCHEMA public FROM turnline_maintenance;
