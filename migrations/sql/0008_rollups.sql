-- What is noted of each change that analytics count (usage_facts), until a job has added it to the rollups; and sums by quarter of an hour,
-- by day of the workspace's time zone, and in total, which are only ever added to.

CREATE TABLE usage_facts (
    id bigint GENERATED ALWAYS AS IDENTITY,
    workspace_id uuid NOT NULL,
    agent_id uuid NOT NULL,
    kind text NOT NULL,
    n smallint NOT NULL DEFAULT 1,
    "at" timestamptz NOT NULL,
    session_id uuid NOT NULL,
    state text,
    -- of a session: by how much it has changed
    started_at timestamptz,
    started smallint NOT NULL DEFAULT 0,
    active smallint NOT NULL DEFAULT 0,
    completed smallint NOT NULL DEFAULT 0,
    abandoned smallint NOT NULL DEFAULT 0,
    messages integer NOT NULL DEFAULT 0,
    messages_then integer NOT NULL DEFAULT 0,
    tokens bigint NOT NULL DEFAULT 0,
    cost_usd numeric(20, 10) NOT NULL DEFAULT 0,
    satisfaction integer NOT NULL DEFAULT 0,
    rated smallint NOT NULL DEFAULT 0,
    -- of an ending, a turn, a call
    duration_s bigint,
    waited_ms integer,
    carried_ms integer,
    took_ms integer,
    first_token_ms integer,
    provider text,
    model text,
    tool_id uuid,
    input_tokens integer NOT NULL DEFAULT 0,
    cached_input_tokens integer NOT NULL DEFAULT 0,
    cache_write_tokens integer NOT NULL DEFAULT 0,
    output_tokens integer NOT NULL DEFAULT 0,
    reasoning_tokens integer NOT NULL DEFAULT 0,
    unpriced boolean NOT NULL DEFAULT false,
    CONSTRAINT pk_usage_facts PRIMARY KEY (workspace_id, id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);  -- a queue: as many rows come as go

-- Where buckets begin, in milliseconds: engine/histogram.py has the same list, and a test holds them together.
CREATE FUNCTION histogram_bounds() RETURNS integer[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ARRAY[
        1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 24, 26, 28, 30, 33, 36, 39, 42, 46, 50, 55,
        60, 66, 72, 79, 86, 94, 103, 113, 124, 136, 149, 163, 179, 196, 215, 236, 259, 284, 312, 343, 377, 414, 455, 500, 550,
        605, 665, 731, 804, 884, 972, 1069, 1175, 1292, 1421, 1563, 1719, 1890, 2079, 2286, 2514, 2765, 3041, 3345, 3679, 4046,
        4450, 4895, 5384, 5922, 6514, 7165, 7881, 8669, 9535, 10488, 11536, 12689, 13957, 15352, 16887, 18575, 20432, 22475,
        24722, 27194, 29913, 32904, 36194, 39813, 43794, 48173, 52990, 58289, 64117, 70528, 77580, 85338, 93871, 103258, 113583,
        124941, 137435, 151178, 166295, 182924, 201216, 221337, 243470, 267817, 294598, 324057, 356462, 392108, 431318, 474449,
        521893, 574082, 631490, 694639, 764102, 840512, 924563, 1017019, 1118720, 1230592, 1353651, 1489016, 1637917, 1801708,
        1981878, 2180065, 2398071, 2637878, 2901665, 3191831, 3511014, 3862115, 4248326, 4673158, 5140473, 5654520, 6219972,
        6841969, 7526165, 8278781, 9106659, 10017324, 11019056, 12120961, 13333057, 14666362, 16132998, 17746297, 19520926,
        21473018, 23620319, 25982350, 28580585, 31438643, 34582507, 38040757, 41844832, 46029315, 50632246, 55695470, 61265017,
        67391518, 74130669, 81543735, 89698108, 98667918, 108534709, 119388179, 131326996, 144459695, 158905664, 174796230,
        192275853, 211503438, 232653781, 255919159, 281511074, 309662181, 340628399, 374691238, 412160361, 453376397, 498714036,
        548585439, 603443982, 663788380]
$$;

CREATE FUNCTION histogram_put(p_counts bigint[], p_ms integer, p_n integer) RETURNS bigint[] LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    v_bucket integer := width_bucket(p_ms, histogram_bounds());
BEGIN
    IF p_ms IS NOT NULL THEN
        p_counts[v_bucket] := coalesce(p_counts[v_bucket], 0) + p_n;
    END IF;
    RETURN p_counts;
END $$;

CREATE FUNCTION histogram_said(p_counts bigint[]) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(jsonb_object_agg(bucket, p_counts[bucket]) FILTER (WHERE p_counts[bucket] <> 0), '{}')
    FROM generate_subscripts(p_counts, 1) bucket
$$;

-- The histogram of times, each counted n times: {"bucket": count}.
CREATE AGGREGATE histogram_of(p_ms integer, p_n integer) (
    SFUNC = histogram_put, STYPE = bigint[], INITCOND = '{}', FINALFUNC = histogram_said, PARALLEL = SAFE);

CREATE FUNCTION histogram_merge(p_one jsonb, p_other jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN p_one = '{}' THEN p_other WHEN p_other = '{}' THEN p_one ELSE (
        SELECT coalesce(jsonb_object_agg(bucket, n) FILTER (WHERE n <> 0), '{}')
        FROM (SELECT key AS bucket, sum(value::bigint) AS n
              FROM (SELECT * FROM jsonb_each_text(p_one) UNION ALL SELECT * FROM jsonb_each_text(p_other)) counts GROUP BY key) sums) END
$$;

CREATE AGGREGATE histogram_sum(jsonb) (SFUNC = histogram_merge, STYPE = jsonb, INITCOND = '{}', PARALLEL = SAFE);

-- A length of time in whole milliseconds, as histograms take it; null where either end is not known.
CREATE FUNCTION ms_between(p_from timestamptz, p_to timestamptz) RETURNS integer LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT greatest(0, least(2147483647, floor(extract(epoch FROM p_to - p_from) * 1000)))::integer
$$;

CREATE FUNCTION note_session() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN  -- one that was still active; what it came to stays counted
        INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, started_at, active)
        VALUES (OLD.workspace_id, OLD.agent_id, 'session', OLD.last_activity_at, OLD.id, OLD.started_at, -1);
        RETURN NULL;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, started_at, started, active, completed, abandoned, messages,
            messages_then, tokens, cost_usd, satisfaction, rated)
        VALUES (NEW.workspace_id, NEW.agent_id, 'session', NEW.last_activity_at, NEW.id, NEW.started_at, 1, (NEW.status = 'active')::integer,
            (NEW.status = 'completed')::integer, (NEW.status = 'abandoned')::integer, NEW.message_count, NEW.message_count, NEW.tokens_used,
            NEW.cost_usd, coalesce(NEW.satisfaction_score, 0), (NEW.satisfaction_score IS NOT NULL)::integer);
    ELSE
        INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, started_at, active, completed, abandoned, messages,
            messages_then, tokens, cost_usd, satisfaction, rated)
        VALUES (NEW.workspace_id, NEW.agent_id, 'session', NEW.last_activity_at, NEW.id, NEW.started_at,
            (NEW.status = 'active')::integer - (OLD.status = 'active')::integer,
            (NEW.status = 'completed')::integer - (OLD.status = 'completed')::integer,
            (NEW.status = 'abandoned')::integer - (OLD.status = 'abandoned')::integer,
            NEW.message_count - OLD.message_count, NEW.message_count - OLD.message_count, NEW.tokens_used - OLD.tokens_used,
            NEW.cost_usd - OLD.cost_usd, coalesce(NEW.satisfaction_score, 0) - coalesce(OLD.satisfaction_score, 0),
            (NEW.satisfaction_score IS NOT NULL)::integer - (OLD.satisfaction_score IS NOT NULL)::integer);
    END IF;
    IF TG_OP = 'UPDATE' AND OLD.status <> 'active' AND (OLD.status, OLD.ended_at) IS DISTINCT FROM (NEW.status, NEW.ended_at) THEN
        INSERT INTO usage_facts (workspace_id, agent_id, kind, n, "at", session_id, state, duration_s)
        VALUES (OLD.workspace_id, OLD.agent_id, 'ending', -1, coalesce(OLD.ended_at, OLD.last_activity_at), OLD.id, OLD.status,
            floor(extract(epoch FROM OLD.ended_at - OLD.started_at)));
    END IF;
    IF NEW.status <> 'active' AND (TG_OP = 'INSERT' OR (OLD.status, OLD.ended_at) IS DISTINCT FROM (NEW.status, NEW.ended_at)) THEN
        INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, state, duration_s)
        VALUES (NEW.workspace_id, NEW.agent_id, 'ending', coalesce(NEW.ended_at, NEW.last_activity_at), NEW.id, NEW.status,
            floor(extract(epoch FROM NEW.ended_at - NEW.started_at)));
    END IF;
    RETURN NULL;
END $$;

-- What a turn came to; a turn that is driven again takes back what it had come to before.
CREATE FUNCTION note_turn() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    v_agent uuid := (SELECT agent_id FROM sessions WHERE id = NEW.session_id AND counted);
BEGIN
    IF v_agent IS NOT NULL AND TG_OP = 'UPDATE' AND OLD.settled_at IS NOT NULL THEN
        INSERT INTO usage_facts (workspace_id, agent_id, kind, n, "at", session_id, state, took_ms, waited_ms, carried_ms)
        VALUES (OLD.workspace_id, v_agent, 'turn', -1, OLD.settled_at, OLD.session_id, OLD.status,
            CASE OLD.status WHEN 'done' THEN ms_between(OLD.opened_at, OLD.settled_at) END, ms_between(OLD.opened_at, OLD.started_at),
            least(2147483647, floor(OLD.carried_s * 1000)));
    END IF;
    IF v_agent IS NOT NULL AND NEW.settled_at IS NOT NULL THEN
        INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, state, took_ms, waited_ms, carried_ms)
        VALUES (NEW.workspace_id, v_agent, 'turn', NEW.settled_at, NEW.session_id, NEW.status,
            CASE NEW.status WHEN 'done' THEN ms_between(NEW.opened_at, NEW.settled_at) END, ms_between(NEW.opened_at, NEW.started_at),
            least(2147483647, floor(NEW.carried_s * 1000)));
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION note_model_call() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    v_agent uuid := (SELECT agent_id FROM sessions WHERE id = NEW.session_id AND counted);
BEGIN
    IF v_agent IS NOT NULL AND TG_OP = 'UPDATE' AND OLD.state <> 'reserved' THEN
        INSERT INTO usage_facts (workspace_id, agent_id, kind, n, "at", session_id, state, provider, model, cost_usd, unpriced,
            input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens, took_ms, first_token_ms)
        VALUES (OLD.workspace_id, v_agent, 'model_call', -1, coalesce(OLD.settled_at, OLD.created_at), OLD.session_id, OLD.state,
            OLD.provider, OLD.model, coalesce(OLD.cost_usd, 0), OLD.state = 'settled' AND OLD.cost_usd IS NULL, OLD.input_tokens,
            OLD.cached_input_tokens, OLD.cache_write_tokens, OLD.output_tokens, OLD.reasoning_tokens, OLD.latency_ms, OLD.ttft_ms);
    END IF;
    IF v_agent IS NOT NULL AND NEW.state <> 'reserved' THEN
        INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, state, provider, model, cost_usd, unpriced,
            input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens, took_ms, first_token_ms)
        VALUES (NEW.workspace_id, v_agent, 'model_call', coalesce(NEW.settled_at, NEW.created_at), NEW.session_id, NEW.state,
            NEW.provider, NEW.model, coalesce(NEW.cost_usd, 0), NEW.state = 'settled' AND NEW.cost_usd IS NULL, NEW.input_tokens,
            NEW.cached_input_tokens, NEW.cache_write_tokens, NEW.output_tokens, NEW.reasoning_tokens, NEW.latency_ms, NEW.ttft_ms);
    END IF;
    RETURN NULL;
END $$;

-- Calls of tools that the agent does not have, whatever the model called them, are one tool: nil.
CREATE FUNCTION note_tool_call() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    v_agent uuid := (SELECT agent_id FROM sessions WHERE id = NEW.session_id AND counted);
BEGIN
    IF v_agent IS NOT NULL AND TG_OP = 'UPDATE' AND OLD.state IN ('succeeded', 'failed', 'denied', 'unknown') THEN
        INSERT INTO usage_facts (workspace_id, agent_id, kind, n, "at", session_id, state, tool_id, took_ms)
        VALUES (OLD.workspace_id, v_agent, 'tool_call', -1, coalesce(OLD.settled_at, OLD.created_at), OLD.session_id, OLD.state,
            coalesce(OLD.tool_id, '00000000-0000-0000-0000-000000000000'), OLD.latency_ms);
    END IF;
    IF v_agent IS NOT NULL AND NEW.state IN ('succeeded', 'failed', 'denied', 'unknown') THEN
        INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, state, tool_id, took_ms)
        VALUES (NEW.workspace_id, v_agent, 'tool_call', coalesce(NEW.settled_at, NEW.created_at), NEW.session_id, NEW.state,
            coalesce(NEW.tool_id, '00000000-0000-0000-0000-000000000000'), NEW.latency_ms);
    END IF;
    RETURN NULL;
END $$;

-- Note all of sessions that were there before anything was noted, and let them be counted from then on; how many there were. Whoever
-- changes anything of a session holds its row, so that a change is either in what is read here or noted by itself.
CREATE FUNCTION note_older_sessions(p_limit integer) RETURNS integer LANGUAGE plpgsql AS $$
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
    SELECT workspace_id, agent_id, 'ending', coalesce(ended_at, last_activity_at), id, status, floor(extract(epoch FROM ended_at - started_at))
    FROM sessions WHERE id = ANY (v_ids) AND status <> 'active';
    INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, state, took_ms, waited_ms, carried_ms)
    SELECT t.workspace_id, s.agent_id, 'turn', t.settled_at, t.session_id, t.status,
        CASE t.status WHEN 'done' THEN ms_between(t.opened_at, t.settled_at) END, ms_between(t.opened_at, t.started_at),
        least(2147483647, floor(t.carried_s * 1000))
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
