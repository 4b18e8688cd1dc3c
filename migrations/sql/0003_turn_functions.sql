-- The commits of a turn, one statement (one round trip, one transaction) each:
--   accept_message   a customer's message: its event, its turn, the counters
--   claim_turn       lease, fence, brief, log; the first model call reserved
--   write_turn       events learned, calls settled, the next intent; or the turn's rest
-- They run with the caller's rights, under row-level security for the workspace that they set for their transaction.
-- Lock order everywhere: the session's row, then its turns. Under READ COMMITTED each statement of a function sees what was
-- committed before it, so what follows the lock on the session sees the log as it is, not as it was when the call began.

-- The end (exclusive) of the stretch of log that belongs to the turn opened at p_opened: where the next turn of the session opens.
CREATE FUNCTION turn_upper(p_session uuid, p_opened integer) RETURNS integer
LANGUAGE sql STABLE AS $$
    SELECT coalesce(min(opened_at_offset), 2147483647) FROM turns WHERE session_id = p_session AND opened_at_offset > p_opened
$$;

-- Append events (a JSON array, in order) to a session whose row the caller has locked; returns the first offset.
CREATE FUNCTION append_events(p_workspace uuid, p_session uuid, p_turn uuid, p_fence bigint, p_events jsonb) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    v_first integer;
    v_count integer := jsonb_array_length(p_events);
    v_messages integer;
BEGIN
    SELECT count(*) INTO v_messages FROM jsonb_array_elements(p_events) e WHERE e->>'kind' IN ('customer_message', 'agent_message');
    UPDATE sessions SET next_offset = next_offset + v_count, event_count = event_count + v_count,
        message_count = message_count + v_messages, last_activity_at = now()
    WHERE id = p_session RETURNING next_offset - v_count INTO v_first;
    INSERT INTO events (workspace_id, session_id, "offset", kind, source, content, metadata, turn_id, tool_call_id, fence)
    SELECT p_workspace, p_session, v_first + n - 1, e->>'kind', e->>'source', e->'content', coalesce(e->'metadata', '{}'),
        p_turn, e->'content'->>'tool_call_id', p_fence
    FROM jsonb_array_elements(p_events) WITH ORDINALITY AS x (e, n);
    RETURN v_first;
END $$;

-- End a turn that the caller has locked (its session's row too): status, reason, lease released, and the next turn opened where
-- customer messages of this turn's stretch were not read.
CREATE FUNCTION rest_turn(p_workspace uuid, p_session uuid, p_turn uuid, p_status text, p_error_class text, p_error_detail text)
RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    t record;
    v_upper integer;
    v_unread integer;
BEGIN
    SELECT opened_at_offset, read_through_offset, strategy INTO t FROM turns WHERE id = p_turn;
    v_upper := turn_upper(p_session, t.opened_at_offset);
    IF p_status = 'done' THEN
        SELECT min("offset") INTO v_unread FROM events
        WHERE session_id = p_session AND kind = 'customer_message'
            AND "offset" > coalesce(t.read_through_offset, t.opened_at_offset - 1) AND "offset" < v_upper;
    ELSE  -- its messages are accounted for by its reason
        SELECT max("offset") INTO t.read_through_offset FROM events
        WHERE session_id = p_session AND kind = 'customer_message' AND "offset" >= t.opened_at_offset AND "offset" < v_upper;
    END IF;
    UPDATE turns SET status = p_status, error_class = p_error_class, error_detail = p_error_detail, settled_at = now(),
        updated_at = now(), not_before = NULL, read_through_offset = t.read_through_offset
    WHERE id = p_turn;
    UPDATE sessions SET lease_owner = NULL, lease_until = NULL WHERE id = p_session;
    IF v_unread IS NOT NULL THEN
        INSERT INTO turns (workspace_id, session_id, strategy, opened_at_offset) VALUES (p_workspace, p_session, t.strategy, v_unread);
    END IF;
END $$;

CREATE FUNCTION accept_message(
    p_workspace uuid, p_session uuid, p_content jsonb, p_metadata jsonb, p_key text, p_strategy text,
    OUT o_outcome text, OUT o_event_id uuid, OUT o_offset integer, OUT o_created_at timestamptz,
    OUT o_turn_id uuid, OUT o_turn_status text, OUT o_ring boolean)
LANGUAGE plpgsql AS $$
DECLARE
    s record;
    a record;
    t record;
    v_strategy text;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    o_ring := false;
    SELECT status, mode, agent_id, lease_fence INTO s FROM sessions WHERE id = p_session FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        o_outcome := 'no_session';
        RETURN;
    END IF;
    IF p_key IS NOT NULL THEN
        SELECT e.id, e."offset", e.created_at, e.turn_id, t2.status, e.content->'text' = p_content->'text'
        INTO o_event_id, o_offset, o_created_at, o_turn_id, o_turn_status, o_ring
        FROM events e LEFT JOIN turns t2 ON t2.id = e.turn_id
        WHERE e.session_id = p_session AND e.message_key = p_key;
        IF FOUND THEN
            o_outcome := CASE WHEN o_ring THEN 'repeated' ELSE 'conflict' END;
            o_ring := false;
            RETURN;
        END IF;
        o_ring := false;
    END IF;
    IF s.status <> 'active' THEN
        o_outcome := 'session_ended';
        RETURN;
    END IF;
    SELECT strategy, status, deleted_at INTO a FROM agents WHERE id = s.agent_id;
    IF a.status <> 'active' OR a.deleted_at IS NOT NULL THEN
        o_outcome := 'agent_inactive';
        RETURN;
    END IF;

    UPDATE sessions SET next_offset = next_offset + 1, event_count = event_count + 1, message_count = message_count + 1,
        last_activity_at = now()
    WHERE id = p_session RETURNING next_offset - 1 INTO o_offset;
    o_outcome := 'accepted';
    IF s.mode <> 'manual' THEN
        v_strategy := coalesce(p_strategy, a.strategy);
        SELECT id, status, strategy INTO t FROM turns
        WHERE session_id = p_session AND status IN ('queued', 'running', 'waiting')
        ORDER BY opened_at_offset DESC LIMIT 1;
        IF FOUND AND v_strategy = 'coalesce' AND t.strategy = 'coalesce' THEN
            o_turn_id := t.id;
            o_turn_status := t.status;
        ELSE
            o_ring := NOT FOUND AND s.mode = 'auto';
            o_turn_status := 'queued';
            INSERT INTO turns (workspace_id, session_id, strategy, opened_at_offset)
            VALUES (p_workspace, p_session, v_strategy, o_offset) RETURNING id INTO o_turn_id;
        END IF;
    END IF;
    INSERT INTO events (workspace_id, session_id, "offset", kind, source, content, metadata, turn_id, message_key, fence)
    VALUES (p_workspace, p_session, o_offset, 'customer_message', 'customer', p_content, p_metadata, o_turn_id, p_key, s.lease_fence)
    RETURNING id, created_at INTO o_event_id, o_created_at;
END $$;

-- p_owner names this one execution: the same call sent again after its reply was lost finds its own claim.
CREATE FUNCTION claim_turn(
    p_turn uuid, p_owner text, p_lease_s double precision, p_max_attempts integer, p_window integer,
    OUT o_outcome text, OUT o_workspace uuid, OUT o_session uuid, OUT o_fence bigint, OUT o_writes integer, OUT o_attempts integer,
    OUT o_elapsed_s double precision, OUT o_agent json, OUT o_tools json, OUT o_events json, OUT o_pending json,
    OUT o_step integer, OUT o_attempt integer, OUT o_read_through integer, OUT o_next_turn uuid)
LANGUAGE plpgsql AS $$
DECLARE
    s record;
    t record;
    a agents;
    v_upper integer;
    v_mine boolean;
BEGIN
    o_workspace := workspace_of_turn(p_turn);
    IF o_workspace IS NULL THEN
        o_outcome := 'no_turn';
        RETURN;
    END IF;
    PERFORM set_config('app.workspace_id', o_workspace::text, true);
    SELECT session_id INTO o_session FROM turns WHERE id = p_turn;
    SELECT mode, agent_id, lease_fence, lease_owner, lease_until > now() AS leased INTO s
    FROM sessions WHERE id = o_session FOR NO KEY UPDATE;
    SELECT status, opened_at_offset, attempts, writes, not_before > now() AS early, started_at, read_through_offset
    INTO t FROM turns WHERE id = p_turn;
    v_mine := coalesce(s.leased AND s.lease_owner = p_owner, false);
    IF t.status NOT IN ('queued', 'running') THEN
        o_outcome := 'settled';
        RETURN;
    ELSIF t.early THEN
        o_outcome := 'early';
        RETURN;
    ELSIF s.mode <> 'auto' THEN
        o_outcome := 'paused';
        RETURN;
    ELSIF s.leased AND NOT v_mine THEN
        o_outcome := 'busy';
        RETURN;
    ELSIF EXISTS (SELECT 1 FROM turns WHERE session_id = o_session AND status IN ('queued', 'running', 'waiting')
                  AND opened_at_offset < t.opened_at_offset) THEN
        o_outcome := 'not_next';
        RETURN;
    END IF;

    IF v_mine THEN
        o_fence := s.lease_fence;
        o_attempts := t.attempts;
    ELSE
        UPDATE sessions SET lease_fence = lease_fence + 1, lease_owner = p_owner,
            lease_until = now() + make_interval(secs => p_lease_s)
        WHERE id = o_session RETURNING lease_fence INTO o_fence;
        -- What the claim before this one had asked a provider and never heard of: it may have been answered, and billed.
        WITH lost AS (
            UPDATE model_calls SET state = 'unknown', settled_at = now(), error_class = 'ReplyLost'
            WHERE turn_id = p_turn AND state = 'reserved' RETURNING 1)
        UPDATE sessions SET unknown_calls = unknown_calls + (SELECT count(*) FROM lost)
        WHERE id = o_session AND EXISTS (SELECT 1 FROM lost);
        IF t.attempts >= p_max_attempts THEN
            PERFORM append_events(o_workspace, o_session, p_turn, o_fence, results || jsonb_build_array(jsonb_build_object(
                'kind', 'status_update', 'source', 'system',
                'content', jsonb_build_object('status', 'dead', 'error_class', 'AttemptsSpent',
                    'text', 'This message could not be answered.'))))
            FROM (SELECT coalesce(jsonb_agg(jsonb_build_object('kind', 'tool_result', 'source', 'system',
                    'content', jsonb_build_object('tool_call_id', c.tool_call_id, 'tool_name', c.tool_name, 'status', 'unknown',
                        'error', 'It was started and nobody heard how it ended.')) ORDER BY c.step, c.position), '[]') AS results
                  FROM tool_calls c WHERE c.turn_id = p_turn AND c.state IN ('requested', 'running')) r;
            UPDATE tool_calls SET state = 'unknown', settled_at = now(), error = 'the turn died'
            WHERE turn_id = p_turn AND state IN ('requested', 'running');
            PERFORM rest_turn(o_workspace, o_session, p_turn, 'dead', 'AttemptsSpent',
                'claimed ' || t.attempts || ' times without coming to a rest');
            SELECT id INTO o_next_turn FROM turns WHERE session_id = o_session AND status = 'queued' ORDER BY opened_at_offset LIMIT 1;
            o_outcome := 'dead';
            RETURN;
        END IF;
        UPDATE turns SET status = 'running', attempts = attempts + 1, fence = o_fence, rings = 0, claimed_at = now(),
            updated_at = now(), started_at = coalesce(started_at, now()), not_before = NULL
        WHERE id = p_turn RETURNING attempts INTO o_attempts;
    END IF;

    SELECT * INTO a FROM agents WHERE id = s.agent_id;
    o_agent := json_build_object('id', a.id, 'version', a.version, 'model_provider', a.model_provider, 'model_name', a.model_name,
        'temperature', a.temperature, 'max_tokens', a.max_tokens, 'name', a.name, 'system_prompt', a.system_prompt,
        'conversation_style', a.conversation_style);
    SELECT json_agg(json_build_object('id', tl.id, 'name', tl.name, 'description', tl.description, 'parameters', tl.parameters,
        'return_schema', tl.return_schema, 'usage_guidelines', tl.usage_guidelines, 'effect', tl.effect,
        'integrations', (SELECT json_agg(json_build_object('id', i.id, 'integration_type', i.integration_type,
                'configuration', i.configuration, 'secrets', i.secrets, 'parameter_mapping', i.parameter_mapping,
                'response_mapping', i.response_mapping) ORDER BY i.priority DESC, i.created_at)
            FROM tool_integrations i WHERE i.tool_id = tl.id AND i.enabled AND i.health_status <> 'unhealthy'))
        ORDER BY at.priority DESC, tl.name)
    INTO o_tools
    FROM agent_tools at JOIN tools tl ON tl.id = at.tool_id
    WHERE at.agent_id = a.id AND at.enabled AND tl.enabled;

    v_upper := turn_upper(o_session, t.opened_at_offset);
    SELECT max("offset") INTO o_read_through FROM events
    WHERE session_id = o_session AND kind = 'customer_message' AND "offset" >= t.opened_at_offset AND "offset" < v_upper;
    -- The latest events, without the messages that later turns will answer.
    SELECT json_agg(json_build_object('offset', w."offset", 'kind', w.kind, 'source', w.source, 'content', w.content,
        'metadata', w.metadata, 'turn_id', w.turn_id) ORDER BY w."offset")
    INTO o_events
    FROM (SELECT "offset", kind, source, content, metadata, turn_id FROM events
          WHERE session_id = o_session AND NOT (kind = 'customer_message' AND "offset" >= v_upper)
          ORDER BY "offset" DESC LIMIT p_window) w;

    SELECT json_agg(json_build_object('tool_call_id', c.tool_call_id, 'state', c.state, 'attempts', c.attempts,
        'idempotency_key', c.idempotency_key)) INTO o_pending
    FROM tool_calls c WHERE c.turn_id = p_turn AND c.state IN ('requested', 'running');
    IF o_pending IS NULL THEN  -- nothing is in progress, so the next step is a model call: reserve it here, and save a commit
        SELECT coalesce(max(step) + 1, 0) INTO o_step FROM tool_calls WHERE turn_id = p_turn;
        IF v_mine THEN
            SELECT attempt INTO o_attempt FROM model_calls WHERE turn_id = p_turn AND step = o_step AND state = 'reserved';
        ELSE
            INSERT INTO model_calls (turn_id, step, attempt, workspace_id, session_id, provider, model, state)
            SELECT p_turn, o_step, coalesce(max(attempt) + 1, 0), o_workspace, o_session, a.model_provider, a.model_name, 'reserved'
            FROM model_calls WHERE turn_id = p_turn AND step = o_step
            RETURNING attempt INTO o_attempt;
            UPDATE turns SET read_through_offset = o_read_through, agent_version = coalesce(agent_version, a.version) WHERE id = p_turn;
        END IF;
    ELSE
        o_read_through := t.read_through_offset;
    END IF;
    o_writes := t.writes;
    o_elapsed_s := extract(epoch FROM now() - coalesce(t.started_at, now()));
    o_outcome := 'claimed';
END $$;

CREATE FUNCTION write_turn(
    p_workspace uuid, p_session uuid, p_turn uuid, p_fence bigint, p_write integer, p_change jsonb,
    OUT o_outcome text, OUT o_last_offset integer, OUT o_news json, OUT o_read_through integer, OUT o_next_turn uuid)
LANGUAGE plpgsql AS $$
DECLARE
    s record;
    t record;
    v_events jsonb := coalesce(p_change->'events', '[]');
    v_call jsonb := p_change->'model_call';
    v_reserve jsonb := p_change->'reserve';
    v_rest jsonb := p_change->'rest';
    v_status text := v_rest->>'status';
    v_upper integer;
    c model_calls;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    SELECT lease_fence, mode INTO s FROM sessions WHERE id = p_session FOR NO KEY UPDATE;
    IF NOT FOUND OR s.lease_fence <> p_fence THEN
        RAISE EXCEPTION 'another claim holds the session' USING ERRCODE = 'TL001';
    END IF;
    SELECT status, writes, opened_at_offset, read_through_offset INTO t FROM turns WHERE id = p_turn;
    v_upper := turn_upper(p_session, t.opened_at_offset);
    o_outcome := 'written';
    IF t.writes > p_write THEN
        o_outcome := 'repeated';  -- this very write was committed, and its reply lost: nothing of it is written again
    ELSIF t.status <> 'running' THEN
        RAISE EXCEPTION 'the turn is no longer running' USING ERRCODE = 'TL001';
    ELSE
        IF v_status = 'done' AND s.mode <> 'auto' THEN  -- somebody took the session over while the model spoke: they win
            v_status := 'cancelled';
            v_rest := jsonb_build_object('error_class', 'TakenOver', 'error_detail', 'the session is ' || s.mode);
            v_events := jsonb_build_array(jsonb_build_object('kind', 'status_update', 'source', 'system',
                'content', jsonb_build_object('status', 'cancelled', 'error_class', 'TakenOver')));
        END IF;
        IF jsonb_array_length(v_events) > 0 THEN
            PERFORM append_events(p_workspace, p_session, p_turn, p_fence, v_events);
        END IF;
        IF v_call IS NOT NULL THEN
            UPDATE model_calls SET state = v_call->>'state', model = coalesce(v_call->>'model', model),
                input_tokens = coalesce((v_call->>'input_tokens')::integer, 0),
                cached_input_tokens = coalesce((v_call->>'cached_input_tokens')::integer, 0),
                cache_write_tokens = coalesce((v_call->>'cache_write_tokens')::integer, 0),
                output_tokens = coalesce((v_call->>'output_tokens')::integer, 0),
                reasoning_tokens = coalesce((v_call->>'reasoning_tokens')::integer, 0),
                cost_usd = (v_call->>'cost_usd')::numeric, price_source = v_call->>'price_source',
                ttft_ms = (v_call->>'ttft_ms')::integer, latency_ms = (v_call->>'latency_ms')::integer,
                provider_request_id = v_call->>'provider_request_id', error_class = v_call->>'error_class', settled_at = now()
            WHERE turn_id = p_turn AND step = (v_call->>'step')::integer AND attempt = (v_call->>'attempt')::integer
                AND state = 'reserved'
            RETURNING * INTO STRICT c;
            UPDATE sessions SET input_tokens = input_tokens + c.input_tokens,
                cached_input_tokens = cached_input_tokens + c.cached_input_tokens,
                cache_write_tokens = cache_write_tokens + c.cache_write_tokens,
                output_tokens = output_tokens + c.output_tokens, reasoning_tokens = reasoning_tokens + c.reasoning_tokens,
                tokens_used = tokens_used + c.input_tokens + c.output_tokens, cost_usd = cost_usd + coalesce(c.cost_usd, 0),
                unpriced_calls = unpriced_calls + (c.state = 'settled' AND c.cost_usd IS NULL)::integer,
                unknown_calls = unknown_calls + (c.state = 'unknown')::integer
            WHERE id = p_session;
        END IF;
        IF p_change ? 'tool_results' THEN
            UPDATE tool_calls tc SET state = r.state, attempts = tc.attempts + r.attempts, latency_ms = r.latency_ms, error = r.error,
                integration_id = r.integration_id, settled_at = now()
            FROM jsonb_to_recordset(p_change->'tool_results')
                AS r (tool_call_id text, state text, attempts integer, latency_ms integer, error text, integration_id uuid)
            WHERE tc.session_id = p_session AND tc.tool_call_id = r.tool_call_id;
        END IF;
        IF p_change ? 'tool_calls' THEN
            INSERT INTO tool_calls (workspace_id, session_id, turn_id, tool_call_id, step, position, tool_id, tool_name, state, arguments,
                arguments_hash, idempotency_key)
            SELECT p_workspace, p_session, p_turn, r.tool_call_id, r.step, r.position, r.tool_id, r.tool_name, 'running', r.arguments,
                r.arguments_hash, r.idempotency_key
            FROM jsonb_to_recordset(p_change->'tool_calls')
                AS r (tool_call_id text, step integer, position integer, tool_id uuid, tool_name text, arguments jsonb,
                      arguments_hash text, idempotency_key text);
        END IF;
        IF v_reserve IS NOT NULL THEN
            INSERT INTO model_calls (turn_id, step, attempt, workspace_id, session_id, provider, model, state, reserved_usd)
            VALUES (p_turn, (v_reserve->>'step')::integer, (v_reserve->>'attempt')::integer, p_workspace, p_session,
                v_reserve->>'provider', v_reserve->>'model', 'reserved', (v_reserve->>'reserved_usd')::numeric);
        END IF;
        IF v_status = 'queued' THEN  -- parked: nobody holds it until not_before
            UPDATE turns SET status = 'queued', not_before = now() + make_interval(secs => (v_rest->>'wait_s')::double precision),
                rung_at = NULL, rings = 0, attempts = attempts - (v_rest->>'refund')::boolean::integer,
                error_class = v_rest->>'error_class', error_detail = v_rest->>'error_detail', updated_at = now()
            WHERE id = p_turn;
            UPDATE sessions SET lease_owner = NULL, lease_until = NULL WHERE id = p_session;
        ELSIF v_status IS NOT NULL THEN
            PERFORM rest_turn(p_workspace, p_session, p_turn, v_status, v_rest->>'error_class', v_rest->>'error_detail');
        END IF;
        UPDATE turns SET writes = p_write + 1 WHERE id = p_turn;
    END IF;

    IF v_reserve IS NOT NULL THEN  -- the model call that this commit reserved reads everything there is by now
        SELECT coalesce(max("offset"), t.read_through_offset),
            json_agg(json_build_object('offset', "offset", 'kind', kind, 'source', source, 'content', content, 'metadata', metadata,
                'turn_id', turn_id) ORDER BY "offset")
        INTO o_read_through, o_news
        FROM events
        WHERE session_id = p_session AND kind = 'customer_message'
            AND "offset" > coalesce(t.read_through_offset, t.opened_at_offset - 1) AND "offset" < v_upper;
        UPDATE turns SET read_through_offset = greatest(read_through_offset, o_read_through) WHERE id = p_turn;
    ELSIF v_rest IS NOT NULL THEN
        SELECT id INTO o_next_turn FROM turns
        WHERE session_id = p_session AND status = 'queued' AND (not_before IS NULL OR not_before <= now()) AND s.mode = 'auto'
        ORDER BY opened_at_offset LIMIT 1;
    END IF;
    SELECT next_offset - 1 INTO o_last_offset FROM sessions WHERE id = p_session;
END $$;
