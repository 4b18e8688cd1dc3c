-- Commits what a worker has learned: events, settled model calls, tool results, and either the next intent (tool calls, a reserved
-- model call) or the turn's outcome. o_outcome: written, or repeated if this write was committed before and its reply was lost.
-- o_cancel_reason says why the turn must not go on (Cancelled, Interrupted, RolledBack, TakenOver, Paused); its tool calls then stay
-- requested and no model call is reserved. o_budget_refusal says why a budget does not allow the model call, as reserve_budgets returns
-- it. o_status and o_error_class are those of the turn after an outcome, which may be another than the one asked for: a cancelled or
-- paused turn is not done. Raises TL001 if another claim holds the session or the turn is not running, TL002 if a tool call starts
-- without approval.
-- Locks: the session's row, then the turn's approvals, tool calls and model calls, then budgets in the order of their ids, then the
--   turn; with an outcome, one pending turn of another session (see admit_next).
-- Callers: store/conversations/turns.py.

CREATE OR REPLACE FUNCTION write_turn(
    p_workspace uuid, p_session uuid, p_turn uuid, p_fence bigint, p_write integer, p_change jsonb,
    OUT o_outcome text, OUT o_last_offset integer, OUT o_new_messages json, OUT o_read_through integer, OUT o_next_turn uuid,
    OUT o_cancel_reason text, OUT o_budget_refusal jsonb, OUT o_status text, OUT o_error_class text)
LANGUAGE plpgsql AS $$
DECLARE
    s record;
    t record;
    c model_calls;  -- all null where this write settles no model call
    v_events jsonb := coalesce(p_change->'events', '[]');
    v_call jsonb := p_change->'model_call';
    v_reserve jsonb := p_change->'reserve';
    v_outcome jsonb := p_change->'outcome';
    v_status text := v_outcome->>'status';
    v_count integer;
    v_messages integer := 0;
    v_upper integer;
    v_unread integer;
    v_until timestamptz;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    SELECT lease_fence, mode, agent_id, next_offset, dead_in_row INTO s FROM sessions WHERE id = p_session FOR NO KEY UPDATE;
    IF NOT FOUND OR s.lease_fence <> p_fence THEN
        RAISE EXCEPTION 'another claim holds the session' USING ERRCODE = 'TL001';
    END IF;
    SELECT status, writes, opened_at_offset, read_through_offset, strategy, cancel_requested_at, cancel_reason, cancelled_by,
        claimed_at
    INTO t FROM turns WHERE id = p_turn;
    v_upper := turn_end_offset(p_session, t.opened_at_offset);
    o_outcome := 'written';
    o_last_offset := s.next_offset - 1;
    o_cancel_reason := CASE WHEN t.cancel_requested_at IS NOT NULL THEN t.cancel_reason WHEN s.mode = 'manual' THEN 'TakenOver'
                   WHEN s.mode = 'paused' THEN 'Paused' END;
    IF t.writes > p_write THEN
        o_outcome := 'repeated';  -- this write was committed and its reply was lost: write nothing again
        IF v_reserve IS NOT NULL THEN  -- answer as then, whatever was requested since
            IF EXISTS (SELECT 1 FROM model_calls WHERE turn_id = p_turn AND step = (v_reserve->>'step')::integer
                    AND attempt = (v_reserve->>'attempt')::integer AND state = 'reserved'
                    AND reserved_tokens IS NOT DISTINCT FROM (v_reserve->>'reserved_tokens')::bigint) THEN
                o_cancel_reason := NULL;
            ELSIF o_cancel_reason IS NULL AND v_reserve->>'reserved_tokens' IS NOT NULL THEN
                o_budget_refusal := '{"code": "budget_refused"}';
            ELSE
                o_cancel_reason := coalesce(o_cancel_reason, 'Paused');
            END IF;
        END IF;
    ELSIF t.status IS DISTINCT FROM 'running' THEN
        RAISE EXCEPTION 'the turn is no longer running' USING ERRCODE = 'TL001';
    ELSE
        IF v_status = 'done' AND o_cancel_reason = 'Paused' THEN  -- the reply is paid for but not sent; the turn waits as it was
            v_status := 'queued';
            v_outcome := '{"wait_s": 0, "refund": true}';
            v_events := '[]';
        ELSIF v_status = 'done' AND o_cancel_reason IS NOT NULL THEN  -- a person acted before the reply: the person wins
            v_status := 'cancelled';
            v_events := jsonb_build_array(jsonb_build_object('kind', 'status_update', 'source', 'system',
                'metadata', jsonb_strip_nulls(jsonb_build_object('read_through', v_events->-1->'metadata'->'read_through')), 'content',
                cancelled_content(o_cancel_reason, t.cancelled_by) || CASE WHEN o_cancel_reason = 'TakenOver' THEN '{}'::jsonb
                    ELSE jsonb_build_object('partial_text', v_events->-1->'content'->'text') END));
        END IF;
        IF v_status = 'cancelled' THEN
            v_outcome := jsonb_build_object('error_class', coalesce(o_cancel_reason, v_outcome->>'error_class'));
            IF t.cancelled_by IS NOT NULL THEN
                v_events := jsonb_set(v_events, '{-1,content,by}', to_jsonb(t.cancelled_by));
            END IF;
            UPDATE approvals SET status = 'cancelled', decided_at = now() WHERE turn_id = p_turn AND status = 'pending';
        END IF;
        IF p_change ? 'tool_calls' THEN
            INSERT INTO tool_calls (workspace_id, session_id, turn_id, tool_call_id, step, position, tool_id, tool_name, effect, state,
                arguments, arguments_hash, idempotency_key)
            SELECT p_workspace, p_session, p_turn, r.tool_call_id, r.step, r.position, r.tool_id, r.tool_name, r.effect,
                CASE WHEN r.approval_hash IS NOT NULL THEN 'awaiting_approval' WHEN o_cancel_reason IS NULL THEN 'running' ELSE 'requested' END,
                r.arguments, r.arguments_hash, r.idempotency_key
            FROM jsonb_to_recordset(p_change->'tool_calls')
                AS r (tool_call_id text, step integer, position integer, tool_id uuid, tool_name text, effect text, arguments jsonb,
                      arguments_hash text, idempotency_key text, approval_hash text);
            WITH asked AS (
                INSERT INTO approvals (workspace_id, session_id, turn_id, tool_call_id, tool_id, tool_name, arguments, arguments_hash,
                    expires_at)
                SELECT p_workspace, p_session, p_turn, r.tool_call_id, r.tool_id, r.tool_name, r.arguments, r.approval_hash,
                    now() + make_interval(secs => (p_change->>'approval_s')::double precision)
                FROM jsonb_to_recordset(p_change->'tool_calls')
                    AS r (tool_call_id text, tool_id uuid, tool_name text, arguments jsonb, approval_hash text)
                WHERE r.approval_hash IS NOT NULL
                RETURNING id, tool_call_id, tool_name, expires_at)
            SELECT v_events || coalesce(jsonb_agg(jsonb_build_object('kind', 'status_update', 'source', 'system', 'content',
                jsonb_build_object('status', 'approval_requested', 'approval_id', id, 'tool_call_id', tool_call_id, 'tool_name', tool_name,
                    'expires_at', expires_at))), '[]')
            INTO v_events FROM asked;
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
                estimated = coalesce((v_call->>'estimated')::boolean, false),
                ttft_ms = (v_call->>'ttft_ms')::integer, latency_ms = (v_call->>'latency_ms')::integer,
                provider_request_id = v_call->>'provider_request_id', error_class = v_call->>'error_class', settled_at = now()
            WHERE turn_id = p_turn AND step = (v_call->>'step')::integer AND attempt = (v_call->>'attempt')::integer
                AND state = 'reserved'
            RETURNING * INTO STRICT c;
        END IF;
        IF p_change ? 'starts' THEN  -- approved or postponed calls begin now; an approval is used once, for its arguments
            UPDATE approvals p SET used_at = now() FROM jsonb_to_recordset(p_change->'starts') AS r (tool_call_id text, approval_hash text)
            WHERE p.session_id = p_session AND p.tool_call_id = r.tool_call_id AND p.status = 'approved' AND p.used_at IS NULL
                AND p.arguments_hash = r.approval_hash;
            UPDATE tool_calls tc SET state = 'running' FROM jsonb_to_recordset(p_change->'starts') AS r (tool_call_id text)
            WHERE tc.session_id = p_session AND tc.tool_call_id = r.tool_call_id AND o_cancel_reason IS NULL
                AND (tc.state = 'requested' OR tc.state = 'awaiting_approval' AND EXISTS (SELECT 1 FROM approvals p
                     WHERE p.session_id = p_session AND p.tool_call_id = tc.tool_call_id AND p.used_at = now()));
            GET DIAGNOSTICS v_unread = ROW_COUNT;
            IF o_cancel_reason IS NULL AND v_unread <> jsonb_array_length(p_change->'starts') THEN
                RAISE EXCEPTION 'tool call started without approval' USING ERRCODE = 'TL002';
            END IF;
        END IF;
        IF p_change ? 'tool_results' THEN
            UPDATE tool_calls tc SET state = r.state, attempts = tc.attempts + r.attempts, latency_ms = r.latency_ms, error = r.error,
                integration_id = r.integration_id, settled_at = now()
            FROM jsonb_to_recordset(p_change->'tool_results')
                AS r (tool_call_id text, state text, attempts integer, latency_ms integer, error text, integration_id uuid)
            WHERE tc.session_id = p_session AND tc.tool_call_id = r.tool_call_id;
        END IF;
        -- Lock budgets last, so that they are locked briefly. Settle first, so that what this call did not use is free for the next.
        IF c.reserved_tokens IS NOT NULL THEN
            PERFORM settle_budgets(p_turn, c.step, c.attempt, c.state, c.cost_usd, (c.input_tokens + c.output_tokens)::bigint);
        END IF;
        IF v_reserve IS NOT NULL AND o_cancel_reason IS NULL THEN
            o_budget_refusal := reserve_budgets(p_workspace, s.agent_id, p_session, p_turn, (v_reserve->>'step')::integer,
                (v_reserve->>'attempt')::integer, (v_reserve->>'reserved_usd')::numeric, (v_reserve->>'reserved_tokens')::bigint);
            IF o_budget_refusal IS NOT NULL THEN
                NULL;  -- the worker ends the turn with this reason
            ELSIF (v_reserve->>'again')::boolean THEN
                UPDATE model_calls SET reserved_usd = (v_reserve->>'reserved_usd')::numeric,
                    reserved_tokens = (v_reserve->>'reserved_tokens')::bigint
                WHERE turn_id = p_turn AND step = (v_reserve->>'step')::integer AND attempt = (v_reserve->>'attempt')::integer;
            ELSE
                INSERT INTO model_calls (turn_id, step, attempt, workspace_id, session_id, provider, model, state, reserved_usd,
                    reserved_tokens)
                VALUES (p_turn, (v_reserve->>'step')::integer, (v_reserve->>'attempt')::integer, p_workspace, p_session,
                    v_reserve->>'provider', v_reserve->>'model', 'reserved', (v_reserve->>'reserved_usd')::numeric,
                    (v_reserve->>'reserved_tokens')::bigint);
            END IF;
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
                dead_in_row = CASE WHEN v_status = 'done' THEN 0 ELSE dead_in_row END,
                lease_owner = CASE WHEN v_status IS NULL THEN lease_owner END,
                lease_until = CASE WHEN v_status IS NULL THEN lease_until END
            WHERE id = p_session;
        END IF;
        IF v_reserve IS NOT NULL AND o_cancel_reason IS NULL AND o_budget_refusal IS NULL THEN
            -- the model call that this commit reserves reads everything up to now
            t.read_through_offset := greatest(t.read_through_offset, last_read_offset(p_session, t.opened_at_offset, v_upper));
            UPDATE turns SET writes = p_write + 1, read_through_offset = t.read_through_offset WHERE id = p_turn;
        ELSIF v_status IN ('queued', 'waiting') THEN  -- parked until not_before, or until an approval is decided
            IF v_status = 'waiting' THEN
                SELECT min(expires_at) INTO v_until FROM approvals p JOIN tool_calls tc USING (session_id, tool_call_id)
                WHERE p.turn_id = p_turn AND tc.state = 'awaiting_approval'
                HAVING bool_and(p.status = 'pending');
                IF v_until IS NULL THEN  -- decided while it was running, so it goes on at once
                    v_status := 'queued';
                END IF;
            END IF;
            UPDATE turns SET writes = p_write + 1, status = v_status, dispatched_at = NULL, dispatch_count = 0, admission = 'pending',
                not_before = coalesce(v_until, now() + make_interval(secs => (v_outcome->>'wait_s')::double precision)),
                attempts = attempts - (v_outcome->>'refund')::boolean::integer, running_s = running_s + extract(epoch FROM now() - claimed_at),
                error_class = v_outcome->>'error_class', error_detail = v_outcome->>'error_detail', updated_at = now()
            WHERE id = p_turn;
        ELSIF v_status IS NOT NULL THEN
            IF v_status = 'done' THEN  -- customer messages that no model call has read open the next turn, in this commit
                SELECT min("offset") INTO v_unread FROM events
                WHERE session_id = p_session AND kind = 'customer_message'
                    AND "offset" > coalesce(t.read_through_offset, t.opened_at_offset - 1) AND "offset" < v_upper;
                IF v_unread IS NOT NULL THEN
                    INSERT INTO turns (workspace_id, session_id, strategy, opened_at_offset, admission)
                    VALUES (p_workspace, p_session, t.strategy, v_unread, 'blocked');
                END IF;
            ELSE  -- the turn's reason accounts for its messages
                t.read_through_offset := last_read_offset(p_session, t.opened_at_offset, v_upper);
            END IF;
            UPDATE turns SET writes = p_write + 1, status = v_status, read_through_offset = t.read_through_offset, not_before = NULL,
                running_s = running_s + extract(epoch FROM now() - claimed_at),
                error_class = v_outcome->>'error_class', error_detail = v_outcome->>'error_detail', settled_at = now(), updated_at = now()
            WHERE id = p_turn;
        ELSE
            UPDATE turns SET writes = p_write + 1 WHERE id = p_turn;
        END IF;
        IF v_status IN ('queued', 'waiting') AND o_cancel_reason <> 'Paused' THEN  -- the turn is cancelled, so it does not wait first
            PERFORM close_turn(p_workspace, p_session, p_turn, p_fence, 'cancelled', o_cancel_reason, NULL,
                cancelled_content(o_cancel_reason, t.cancelled_by));
            SELECT next_offset - 1 INTO o_last_offset FROM sessions WHERE id = p_session;
        END IF;
    END IF;

    IF v_reserve IS NOT NULL THEN
        -- The customer messages after those that the worker has read, up to those that the reserved call reads; the same after a lost reply.
        SELECT max("offset"), json_agg(json_build_object('offset', "offset", 'kind', kind, 'source', source, 'content', content,
            'metadata', metadata, 'turn_id', turn_id) ORDER BY "offset")
        INTO o_read_through, o_new_messages
        FROM events
        WHERE session_id = p_session AND kind = 'customer_message' AND "offset" < v_upper AND "offset" <= t.read_through_offset
            AND "offset" > greatest((v_reserve->>'last_message_offset')::integer, t.opened_at_offset - 1);
    ELSIF v_outcome IS NOT NULL THEN
        o_next_turn := admit_next(p_workspace, p_session);
        SELECT status, error_class INTO o_status, o_error_class FROM turns WHERE id = p_turn;
    END IF;
END $$;
