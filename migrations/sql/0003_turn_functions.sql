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

-- Insert events (a JSON array, in order) from offset p_first on; the caller holds the session's row and moves its counters.
CREATE FUNCTION insert_events(p_workspace uuid, p_session uuid, p_turn uuid, p_fence bigint, p_first integer, p_events jsonb) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO events (workspace_id, session_id, "offset", kind, source, content, metadata, turn_id, tool_call_id, fence)
    SELECT p_workspace, p_session, p_first + n - 1, e->>'kind', e->>'source', e->'content', coalesce(e->'metadata', '{}'),
        p_turn, e->'content'->>'tool_call_id', p_fence
    FROM jsonb_array_elements(p_events) WITH ORDINALITY AS x (e, n)
$$;

-- Append events to a session whose row the caller has locked, counters included; returns the first offset.
CREATE FUNCTION append_events(p_workspace uuid, p_session uuid, p_turn uuid, p_fence bigint, p_events jsonb) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    v_first integer;
    v_count integer := jsonb_array_length(p_events);
BEGIN
    UPDATE sessions SET next_offset = next_offset + v_count, event_count = event_count + v_count, last_activity_at = now()
    WHERE id = p_session RETURNING next_offset - v_count INTO v_first;
    PERFORM insert_events(p_workspace, p_session, p_turn, p_fence, v_first, p_events);
    RETURN v_first;
END $$;

-- The last customer message (its offset) of the stretch that belongs to the turn opened at p_opened; null where there is none.
CREATE FUNCTION turn_heard(p_session uuid, p_opened integer, p_upper integer) RETURNS integer
LANGUAGE sql STABLE AS $$
    SELECT max("offset") FROM events
    WHERE session_id = p_session AND kind = 'customer_message' AND "offset" >= p_opened AND "offset" < p_upper
$$;

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
    v_lost integer := 0;
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
        -- What the claim before this one had asked a provider and never heard of: it may have been answered, and billed.
        IF t.attempts > 0 OR t.writes > 0 THEN
            UPDATE model_calls SET state = 'unknown', settled_at = now(), error_class = 'ReplyLost'
            WHERE turn_id = p_turn AND state = 'reserved';
            GET DIAGNOSTICS v_lost = ROW_COUNT;
        END IF;
        o_fence := s.lease_fence + 1;
        UPDATE sessions SET lease_fence = o_fence, lease_owner = p_owner, lease_until = now() + make_interval(secs => p_lease_s),
            unknown_calls = unknown_calls + v_lost
        WHERE id = o_session;
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
            UPDATE turns SET status = 'dead', error_class = 'AttemptsSpent', settled_at = now(), updated_at = now(),
                error_detail = 'claimed ' || t.attempts || ' times without coming to a rest',
                read_through_offset = turn_heard(o_session, t.opened_at_offset, turn_upper(o_session, t.opened_at_offset))
            WHERE id = p_turn;
            UPDATE sessions SET lease_owner = NULL, lease_until = NULL WHERE id = o_session;
            SELECT id INTO o_next_turn FROM turns WHERE session_id = o_session AND status = 'queued' ORDER BY opened_at_offset LIMIT 1;
            o_outcome := 'dead';
            RETURN;
        END IF;
        o_attempts := t.attempts + 1;
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
    o_read_through := turn_heard(o_session, t.opened_at_offset, v_upper);
    -- The latest events, without the messages that later turns will answer.
    SELECT json_agg(json_build_object('offset', w."offset", 'kind', w.kind, 'source', w.source, 'content', w.content,
        'metadata', w.metadata, 'turn_id', w.turn_id) ORDER BY w."offset")
    INTO o_events
    FROM (SELECT "offset", kind, source, content, metadata, turn_id FROM events
          WHERE session_id = o_session AND NOT (kind = 'customer_message' AND "offset" >= v_upper)
          ORDER BY "offset" DESC LIMIT p_window) w;

    IF o_attempts > 1 OR t.writes > 0 THEN  -- somebody was here before
        SELECT json_agg(json_build_object('tool_call_id', c.tool_call_id, 'idempotency_key', c.idempotency_key)) INTO o_pending
        FROM tool_calls c WHERE c.turn_id = p_turn AND c.state IN ('requested', 'running');
        SELECT coalesce(max(step) + 1, 0) INTO o_step FROM tool_calls WHERE turn_id = p_turn;
        SELECT coalesce(max(attempt) + 1, 0) INTO o_attempt FROM model_calls WHERE turn_id = p_turn AND step = o_step;
    ELSE
        o_step := 0;
        o_attempt := 0;
    END IF;
    IF o_pending IS NOT NULL THEN
        o_step := NULL;
        o_attempt := NULL;
        o_read_through := t.read_through_offset;
    ELSIF v_mine THEN
        SELECT attempt INTO o_attempt FROM model_calls WHERE turn_id = p_turn AND step = o_step AND state = 'reserved';
    ELSE  -- nothing is in progress, so the next step is a model call: reserve it here, and save a commit
        INSERT INTO model_calls (turn_id, step, attempt, workspace_id, session_id, provider, model, state)
        VALUES (p_turn, o_step, o_attempt, o_workspace, o_session, a.model_provider, a.model_name, 'reserved');
    END IF;
    IF NOT v_mine THEN
        UPDATE turns SET status = 'running', attempts = o_attempts, fence = o_fence, rings = 0, claimed_at = now(), updated_at = now(),
            started_at = coalesce(started_at, now()), not_before = NULL, read_through_offset = o_read_through,
            agent_version = coalesce(agent_version, a.version)
        WHERE id = p_turn;
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
    c model_calls;  -- all null where this write settles none
    v_events jsonb := coalesce(p_change->'events', '[]');
    v_call jsonb := p_change->'model_call';
    v_reserve jsonb := p_change->'reserve';
    v_rest jsonb := p_change->'rest';
    v_status text := v_rest->>'status';
    v_count integer;
    v_messages integer := 0;
    v_upper integer;
    v_unread integer;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    SELECT lease_fence, mode, next_offset INTO s FROM sessions WHERE id = p_session FOR NO KEY UPDATE;
    IF NOT FOUND OR s.lease_fence <> p_fence THEN
        RAISE EXCEPTION 'another claim holds the session' USING ERRCODE = 'TL001';
    END IF;
    SELECT status, writes, opened_at_offset, read_through_offset, strategy INTO t FROM turns WHERE id = p_turn;
    v_upper := turn_upper(p_session, t.opened_at_offset);
    o_outcome := 'written';
    o_last_offset := s.next_offset - 1;
    IF t.writes > p_write THEN
        o_outcome := 'repeated';  -- this very write was committed, and its reply lost: nothing of it is written again
    ELSIF t.status IS DISTINCT FROM 'running' THEN
        RAISE EXCEPTION 'the turn is no longer running' USING ERRCODE = 'TL001';
    ELSE
        IF v_status = 'done' AND s.mode <> 'auto' THEN  -- somebody took the session over while the model spoke: they win
            v_status := 'cancelled';
            v_rest := jsonb_build_object('error_class', 'TakenOver', 'error_detail', 'the session is ' || s.mode);
            v_events := jsonb_build_array(jsonb_build_object('kind', 'status_update', 'source', 'system',
                'content', jsonb_build_object('status', 'cancelled', 'error_class', 'TakenOver')));
        END IF;
        v_count := jsonb_array_length(v_events);
        IF v_count > 0 THEN
            v_messages := jsonb_array_length(jsonb_path_query_array(v_events, '$[*] ? (@.kind == "agent_message")'));
            PERFORM insert_events(p_workspace, p_session, p_turn, p_fence, s.next_offset, v_events);
            o_last_offset := s.next_offset + v_count - 1;
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
        IF v_count > 0 OR v_call IS NOT NULL OR v_status IS NOT NULL THEN
            UPDATE sessions SET next_offset = next_offset + v_count, event_count = event_count + v_count,
                message_count = message_count + v_messages, last_activity_at = now(),
                input_tokens = input_tokens + coalesce(c.input_tokens, 0),
                cached_input_tokens = cached_input_tokens + coalesce(c.cached_input_tokens, 0),
                cache_write_tokens = cache_write_tokens + coalesce(c.cache_write_tokens, 0),
                output_tokens = output_tokens + coalesce(c.output_tokens, 0),
                reasoning_tokens = reasoning_tokens + coalesce(c.reasoning_tokens, 0),
                tokens_used = tokens_used + coalesce(c.input_tokens + c.output_tokens, 0), cost_usd = cost_usd + coalesce(c.cost_usd, 0),
                unpriced_calls = unpriced_calls + coalesce((c.state = 'settled' AND c.cost_usd IS NULL)::integer, 0),
                unknown_calls = unknown_calls + coalesce((c.state = 'unknown')::integer, 0),
                lease_owner = CASE WHEN v_status IS NULL THEN lease_owner END,
                lease_until = CASE WHEN v_status IS NULL THEN lease_until END
            WHERE id = p_session;
        END IF;
        IF v_reserve IS NOT NULL THEN  -- the model call that this commit reserves reads everything there is by now
            t.read_through_offset := greatest(t.read_through_offset, turn_heard(p_session, t.opened_at_offset, v_upper));
            UPDATE turns SET writes = p_write + 1, read_through_offset = t.read_through_offset WHERE id = p_turn;
        ELSIF v_status = 'queued' THEN  -- parked: nobody holds it until not_before
            UPDATE turns SET writes = p_write + 1, status = 'queued', rung_at = NULL, rings = 0,
                not_before = now() + make_interval(secs => (v_rest->>'wait_s')::double precision),
                attempts = attempts - (v_rest->>'refund')::boolean::integer,
                error_class = v_rest->>'error_class', error_detail = v_rest->>'error_detail', updated_at = now()
            WHERE id = p_turn;
        ELSIF v_status IS NOT NULL THEN
            IF v_status = 'done' THEN  -- customer messages that no call has read open the next turn, in this commit
                SELECT min("offset") INTO v_unread FROM events
                WHERE session_id = p_session AND kind = 'customer_message'
                    AND "offset" > coalesce(t.read_through_offset, t.opened_at_offset - 1) AND "offset" < v_upper;
                IF v_unread IS NOT NULL THEN
                    INSERT INTO turns (workspace_id, session_id, strategy, opened_at_offset)
                    VALUES (p_workspace, p_session, t.strategy, v_unread);
                END IF;
            ELSE  -- its messages are accounted for by its reason
                t.read_through_offset := turn_heard(p_session, t.opened_at_offset, v_upper);
            END IF;
            UPDATE turns SET writes = p_write + 1, status = v_status, read_through_offset = t.read_through_offset, not_before = NULL,
                error_class = v_rest->>'error_class', error_detail = v_rest->>'error_detail', settled_at = now(), updated_at = now()
            WHERE id = p_turn;
        ELSE
            UPDATE turns SET writes = p_write + 1 WHERE id = p_turn;
        END IF;
    END IF;

    IF v_reserve IS NOT NULL THEN
        -- From what the worker has heard on; said again where its reply was lost.
        SELECT max("offset"), json_agg(json_build_object('offset', "offset", 'kind', kind, 'source', source, 'content', content,
            'metadata', metadata, 'turn_id', turn_id) ORDER BY "offset")
        INTO o_read_through, o_news
        FROM events
        WHERE session_id = p_session AND kind = 'customer_message' AND "offset" < v_upper
            AND "offset" > greatest((v_reserve->>'heard')::integer, t.opened_at_offset - 1);
    ELSIF v_rest IS NOT NULL THEN
        SELECT id INTO o_next_turn FROM turns
        WHERE session_id = p_session AND status = 'queued' AND (not_before IS NULL OR not_before <= now()) AND s.mode = 'auto'
        ORDER BY opened_at_offset LIMIT 1;
    END IF;
END $$;
