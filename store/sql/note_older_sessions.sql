-- Writes everything that up to p_limit uncounted sessions came to into usage_facts and marks them as counted. Returns how many. Whoever
-- changes a session holds its row, so each change is either read here or noted by its own trigger.
-- Locks: the sessions' rows, in the order of their ids; locked ones are skipped.
-- Callers: store/analytics/rollups.py.

CREATE OR REPLACE FUNCTION note_older_sessions(p_limit integer) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    v_ids uuid[] := ARRAY(SELECT id FROM sessions WHERE NOT counted ORDER BY id LIMIT p_limit FOR NO KEY UPDATE SKIP LOCKED);
BEGIN
    INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, started_at, started, active, completed, abandoned, messages,
        tokens, cost_usd, satisfaction, rated)
    SELECT workspace_id, agent_id, 'session', last_activity_at, id, started_at, 1, (status = 'active')::integer,
        (status = 'completed')::integer, (status = 'abandoned')::integer, message_count, tokens_used, cost_usd,
        coalesce(satisfaction_score, 0), (satisfaction_score IS NOT NULL)::integer
    FROM sessions WHERE id = ANY (v_ids);
    INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, started_at, messages_then)
    SELECT s.workspace_id, s.agent_id, 'session', max(e.created_at), s.id, s.started_at, count(*)
    FROM events e JOIN sessions s ON s.id = e.session_id
    WHERE e.session_id = ANY (v_ids) AND e.kind IN ('customer_message', 'agent_message')
    GROUP BY s.workspace_id, s.agent_id, s.id, s.started_at, date_bin('15 minutes', e.created_at, '2000-01-01 00:00Z');
    INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, state, duration_s)
    SELECT workspace_id, agent_id, 'ending', coalesce(ended_at, last_activity_at), id, status,
        floor(extract(epoch FROM ended_at - started_at))
    FROM sessions WHERE id = ANY (v_ids) AND status <> 'active';
    INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, state, took_ms, waited_ms, running_ms)
    SELECT t.workspace_id, s.agent_id, 'turn', t.settled_at, t.session_id, t.status,
        CASE t.status WHEN 'done' THEN ms_between(t.opened_at, t.settled_at) END, ms_between(t.opened_at, t.started_at),
        least(2147483647, floor(t.running_s * 1000))
    FROM turns t JOIN sessions s ON s.id = t.session_id WHERE t.session_id = ANY (v_ids) AND t.settled_at IS NOT NULL;
    INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, state, provider, model, cost_usd, unpriced,
        input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens, took_ms, first_token_ms)
    SELECT m.workspace_id, s.agent_id, 'model_call', coalesce(m.settled_at, m.created_at), m.session_id, m.state, m.provider, m.model,
        coalesce(m.cost_usd, 0), m.state = 'settled' AND m.cost_usd IS NULL, m.input_tokens, m.cached_input_tokens, m.cache_write_tokens,
        m.output_tokens, m.reasoning_tokens, m.latency_ms, m.ttft_ms
    FROM model_calls m JOIN sessions s ON s.id = m.session_id WHERE m.session_id = ANY (v_ids) AND m.state <> 'reserved';
    INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, state, tool_id, took_ms)
    SELECT c.workspace_id, s.agent_id, 'tool_call', coalesce(c.settled_at, c.created_at), c.session_id, c.state,
        coalesce(c.tool_id, '00000000-0000-0000-0000-000000000000'), c.latency_ms
    FROM tool_calls c JOIN sessions s ON s.id = c.session_id
    WHERE c.session_id = ANY (v_ids) AND c.state IN ('succeeded', 'failed', 'denied', 'unknown');
    UPDATE sessions SET counted = true WHERE id = ANY (v_ids);
    RETURN cardinality(v_ids);
END $$;
