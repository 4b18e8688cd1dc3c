-- Gives one execution of a turn the session's lease and a new fence, and returns what the worker needs: the agent's snapshot, the
-- tools' integrations, the latest events and the pending tool calls. Reserves the first model call if no tool call is pending.
-- p_owner names the execution: if its reply was lost, the same call finds its own claim again. o_outcome: claimed, no_turn, settled,
-- busy, early, paused, quarantined, not_next, dead. Unhealthy integrations are included, with their health_status.
-- Locks: the session's row, then its turns with their model calls, tool calls and approvals; for a turn that ends here, one waiting
--   turn of another session (see admit_next).
-- Callers: store/conversations/turns.py.

CREATE OR REPLACE FUNCTION claim_turn(
    p_turn uuid, p_owner text, p_lease_s double precision, p_max_attempts integer, p_window integer,
    OUT o_outcome text, OUT o_workspace uuid, OUT o_session uuid, OUT o_fence bigint, OUT o_writes integer, OUT o_attempts integer,
    OUT o_elapsed_s double precision, OUT o_running_s double precision, OUT o_opened_at_offset integer, OUT o_budgeted boolean,
    OUT o_agent jsonb, OUT o_integrations json, OUT o_events json, OUT o_pending json,
    OUT o_step integer, OUT o_attempt integer, OUT o_read_through integer, OUT o_next_turn uuid)
LANGUAGE plpgsql AS $$
DECLARE
    s record;
    t record;
    v_digest text;
    v_upper integer;
    v_mine boolean;
    v_lost integer := 0;
    v_ending jsonb;  -- how the previous claim ended, if it ended badly
BEGIN
    o_workspace := workspace_of_turn(p_turn);
    IF o_workspace IS NULL THEN
        o_outcome := 'no_turn';
        RETURN;
    END IF;
    PERFORM set_config('app.workspace_id', o_workspace::text, true);
    SELECT session_id INTO o_session FROM turns WHERE id = p_turn;
    SELECT mode, agent_id, lease_fence, lease_owner, lease_until, lease_until > now() AS leased, quarantined_at INTO s
    FROM sessions WHERE id = o_session FOR NO KEY UPDATE;
    SELECT status, opened_at_offset, attempts, writes, not_before > now() AS early, started_at, claimed_at, read_through_offset,
        cancel_requested_at, cancel_reason, cancelled_by, running_s, agent_version, agent_digest, redrives
    INTO t FROM turns WHERE id = p_turn;
    v_mine := coalesce(s.leased AND s.lease_owner = p_owner, false);
    IF t.status NOT IN ('queued', 'running', 'waiting') THEN
        o_outcome := 'settled';
        RETURN;
    ELSIF s.leased AND NOT v_mine THEN
        o_outcome := 'busy';
        RETURN;
    ELSIF t.cancel_requested_at IS NOT NULL AND NOT v_mine THEN  -- its worker died before it saw the cancellation
        UPDATE sessions SET lease_fence = lease_fence + 1 WHERE id = o_session RETURNING lease_fence INTO o_fence;
        PERFORM close_turn(o_workspace, o_session, p_turn, o_fence, 'cancelled', t.cancel_reason, NULL,
            cancelled_content(t.cancel_reason, t.cancelled_by));
        o_next_turn := admit_next(o_workspace, o_session);
        o_outcome := 'settled';
        RETURN;
    ELSIF t.early OR s.mode <> 'auto' OR s.quarantined_at IS NOT NULL THEN
        o_outcome := CASE WHEN t.early THEN 'early' WHEN s.mode <> 'auto' THEN 'paused' ELSE 'quarantined' END;
        -- The turn does not count against the in-flight limit until it is admitted again.
        UPDATE turns SET admission = 'pending' WHERE id = p_turn AND status = 'queued' AND admission = 'admitted';
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
        -- The previous claim sent this model call and got no answer. It may have been answered and billed.
        IF t.attempts > 0 OR t.writes > 0 THEN
            UPDATE model_calls SET state = 'unknown', settled_at = now(), error_class = 'ReplyLost'
            WHERE turn_id = p_turn AND state = 'reserved';
            GET DIAGNOSTICS v_lost = ROW_COUNT;
            v_ending := last_failure(p_turn, v_lost > 0);
            IF v_ending IS NOT NULL THEN
                UPDATE turns SET endings = jsonb_path_query_array(endings || v_ending, '$[last - 19 to last]') WHERE id = p_turn;
            END IF;
        END IF;
        o_fence := s.lease_fence + 1;
        UPDATE sessions SET lease_fence = o_fence, lease_owner = p_owner, lease_until = now() + make_interval(secs => p_lease_s),
            unknown_calls = unknown_calls + v_lost
        WHERE id = o_session;
        IF t.attempts >= p_max_attempts THEN
            PERFORM close_turn(o_workspace, o_session, p_turn, o_fence, 'dead', 'AttemptsSpent',
                jsonb_strip_nulls(jsonb_build_object('code', 'attempts_spent', 'attempts', t.attempts, 'last', v_ending - 'claimed_at'))::text,
                jsonb_build_object('text_code', 'not_answered'));
            o_next_turn := admit_next(o_workspace, o_session);
            o_outcome := 'dead';
            RETURN;
        END IF;
        o_attempts := t.attempts + 1;
        IF t.status = 'running' THEN  -- the time of a claim that was cut short counts until its lease ran out
            t.running_s := t.running_s + greatest(0, extract(epoch FROM least(now(), s.lease_until) - t.claimed_at));
        END IF;
    END IF;

    -- The agent as it was when the turn was first claimed, whatever was changed since.
    IF t.agent_digest IS NULL THEN
        SELECT n.digest INTO t.agent_digest FROM take_snapshot(o_workspace, s.agent_id) n;
    END IF;
    SELECT snapshot, version INTO o_agent, t.agent_version FROM agent_snapshots WHERE agent_id = s.agent_id AND digest = t.agent_digest;
    -- The integrations are read as they are now: a corrected address or a changed secret counts at once.
    SELECT json_agg(json_build_object('tool_id', i.tool_id, 'id', i.id, 'integration_type', i.integration_type,
            'configuration', i.configuration, 'secrets', i.secrets, 'parameter_mapping', i.parameter_mapping,
            'response_mapping', i.response_mapping, 'health_status', i.health_status) ORDER BY i.priority DESC, i.created_at)
    INTO o_integrations
    FROM tool_integrations i JOIN tools tl ON tl.id = i.tool_id
    WHERE i.tool_id IN (SELECT (x->>'id')::uuid FROM jsonb_array_elements(o_agent->'tools') x)
        AND i.enabled AND tl.enabled;

    IF o_attempts > 1 OR t.writes > 0 OR t.redrives > 0 THEN  -- the turn was claimed before
        PERFORM expire_approvals_of(o_workspace, o_session, p_turn, o_fence);
        SELECT json_agg(json_build_object('tool_call_id', c.tool_call_id, 'idempotency_key', c.idempotency_key, 'state', c.state,
            'approval', p.status, 'arguments_hash', p.arguments_hash, 'reason', p.reason, 'edited_arguments', p.edited_arguments,
            'used', p.used_at IS NOT NULL)) INTO o_pending
        FROM tool_calls c LEFT JOIN approvals p ON p.session_id = c.session_id AND p.tool_call_id = c.tool_call_id
        WHERE c.turn_id = p_turn AND c.state IN ('requested', 'awaiting_approval', 'running');
        SELECT coalesce(max(step) + 1, 0) INTO o_step FROM tool_calls WHERE turn_id = p_turn;
        SELECT coalesce(max(attempt) + 1, 0) INTO o_attempt FROM model_calls WHERE turn_id = p_turn AND step = o_step;
    ELSE
        o_step := 0;
        o_attempt := 0;
    END IF;

    v_upper := turn_end_offset(o_session, t.opened_at_offset);
    IF v_mine AND o_pending IS NULL THEN
        -- This claim was made before and its reply was lost. The reserved call reads the same messages as then; the next call reads the others.
        v_upper := least(v_upper, t.read_through_offset + 1);
    END IF;
    o_read_through := last_read_offset(o_session, t.opened_at_offset, v_upper);
    -- The latest events, without the messages that later turns will answer.
    SELECT json_agg(json_build_object('offset', w."offset", 'kind', w.kind, 'source', w.source, 'content', w.content,
        'metadata', w.metadata, 'turn_id', w.turn_id) ORDER BY w."offset")
    INTO o_events
    FROM (SELECT "offset", kind, source, content, metadata, turn_id FROM events
          WHERE session_id = o_session AND NOT (kind = 'customer_message' AND "offset" >= v_upper)
          ORDER BY "offset" DESC LIMIT p_window) w;

    IF o_pending IS NOT NULL THEN
        o_step := NULL;
        o_attempt := NULL;
        o_read_through := t.read_through_offset;
    ELSIF v_mine THEN
        SELECT attempt INTO o_attempt FROM model_calls WHERE turn_id = p_turn AND step = o_step AND state = 'reserved';
    ELSE  -- nothing is in progress, so the next step is a model call: reserving it here saves a commit
        INSERT INTO model_calls (turn_id, step, attempt, workspace_id, session_id, provider, model, state)
        VALUES (p_turn, o_step, o_attempt, o_workspace, o_session, o_agent->'agent'->>'model_provider', o_agent->'agent'->>'model_name',
            'reserved');
    END IF;
    IF NOT v_mine THEN
        UPDATE turns SET status = 'running', attempts = o_attempts, fence = o_fence, dispatch_count = 0, admission = 'admitted', claimed_at = now(),
            updated_at = now(), started_at = coalesce(started_at, now()), not_before = NULL, read_through_offset = o_read_through,
            agent_version = t.agent_version, agent_digest = t.agent_digest, running_s = t.running_s
        WHERE id = p_turn;
    END IF;
    o_budgeted := EXISTS (SELECT 1 FROM budgets_of(o_workspace, s.agent_id, o_session));
    o_opened_at_offset := t.opened_at_offset;
    o_writes := t.writes;
    o_running_s := t.running_s;
    o_elapsed_s := extract(epoch FROM now() - coalesce(t.started_at, now()));
    o_outcome := 'claimed';
END $$;
