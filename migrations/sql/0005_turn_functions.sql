-- The commits of a turn, as of 0003, with what people may do to a turn meanwhile. Lock order as there: the session's row, then its
-- turns; then budgets, by id; last the turn of another session that the ring is handed on to, which is skipped where it is locked.
--
-- turns.place says whose turn it is to be rung: 'behind' another turn of its session, 'waiting' for room in its workspace's window, or
-- 'granted'. No more than a window of a workspace's turns are granted, so that its rings never fill the broker's queue.

-- End an open turn that no worker writes any more: results for its tool calls, its last status_update, its reason. The caller holds the
-- session's row and has counted its fence up where the turn was running.
CREATE FUNCTION close_turn(
    p_workspace uuid, p_session uuid, p_turn uuid, p_fence bigint, p_status text, p_error_class text, p_error_detail text, p_content jsonb)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_lost integer;
    v_opened integer;
    v_dead integer;
BEGIN
    UPDATE model_calls SET state = 'unknown', settled_at = now(), error_class = 'ReplyLost' WHERE turn_id = p_turn AND state = 'reserved';
    GET DIAGNOSTICS v_lost = ROW_COUNT;
    PERFORM append_events(p_workspace, p_session, p_turn, p_fence, results || jsonb_build_array(jsonb_build_object(
        'kind', 'status_update', 'source', 'system',
        'content', jsonb_build_object('status', p_status, 'error_class', p_error_class) || p_content)))
    FROM (SELECT coalesce(jsonb_agg(jsonb_build_object('kind', 'tool_result', 'source', 'system',
            'content', jsonb_build_object('tool_call_id', c.tool_call_id, 'tool_name', c.tool_name,
                'status', CASE c.state WHEN 'running' THEN 'unknown' ELSE 'denied' END,
                'error', CASE c.state WHEN 'running' THEN 'It was started and nobody heard how it ended: it may or may not have happened.'
                                      ELSE 'It was not made: the turn ended before.' END)) ORDER BY c.step, c.position), '[]') AS results
          FROM tool_calls c WHERE c.turn_id = p_turn AND c.state IN ('requested', 'awaiting_approval', 'running')) r;
    UPDATE tool_calls SET state = CASE state WHEN 'running' THEN 'unknown' ELSE 'denied' END, settled_at = now(), error = 'the turn ended'
    WHERE turn_id = p_turn AND state IN ('requested', 'awaiting_approval', 'running');
    UPDATE approvals SET status = 'cancelled', decided_at = now() WHERE turn_id = p_turn AND status = 'pending';
    SELECT opened_at_offset INTO v_opened FROM turns WHERE id = p_turn;
    UPDATE turns SET status = p_status, error_class = p_error_class, error_detail = p_error_detail, not_before = NULL, settled_at = now(),
        updated_at = now(), read_through_offset = turn_heard(p_session, v_opened, turn_upper(p_session, v_opened))
    WHERE id = p_turn;
    UPDATE sessions SET unknown_calls = unknown_calls + v_lost,
        dead_in_row = CASE p_status WHEN 'dead' THEN dead_in_row + 1 ELSE dead_in_row END
    WHERE id = p_session RETURNING dead_in_row INTO v_dead;
    UPDATE sessions SET lease_owner = NULL, lease_until = NULL  -- unless it is another turn's
    WHERE id = p_session AND NOT EXISTS (SELECT 1 FROM turns WHERE session_id = p_session AND status = 'running');
    IF p_status = 'dead' AND v_dead >= 3 THEN
        PERFORM quarantine(p_workspace, p_session, p_fence);
    END IF;
END $$;

-- Three dead turns in a row: something about the session kills workers. It waits for an operator; others go on.
CREATE FUNCTION quarantine(p_workspace uuid, p_session uuid, p_fence bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE sessions SET quarantined_at = now() WHERE id = p_session AND quarantined_at IS NULL;
    IF FOUND THEN
        PERFORM append_events(p_workspace, p_session, NULL, p_fence, jsonb_build_array(jsonb_build_object(
            'kind', 'status_update', 'source', 'system', 'content', jsonb_build_object('status', 'quarantined'))));
    END IF;
END $$;

-- Whom to ring next, once a turn of p_session has come to a rest: the session's first open turn, or else the oldest turn of the
-- workspace that waits for room. Null where there is none. Its place is granted; the caller rings it after the commit.
CREATE FUNCTION hand_on(p_workspace uuid, p_session uuid) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    v_turn uuid;
BEGIN
    UPDATE turns SET place = 'granted' FROM sessions s
    WHERE turns.id = (SELECT id FROM turns WHERE session_id = p_session AND status IN ('queued', 'running', 'waiting')
                      ORDER BY opened_at_offset LIMIT 1)
        AND s.id = p_session AND s.mode = 'auto' AND s.quarantined_at IS NULL
        AND turns.status = 'queued' AND (turns.not_before IS NULL OR turns.not_before <= now())
    RETURNING turns.id INTO v_turn;
    IF v_turn IS NULL THEN
        UPDATE turns SET place = 'granted'
        WHERE id = (SELECT t.id FROM turns t JOIN sessions s ON s.id = t.session_id
                    WHERE t.workspace_id = p_workspace AND t.place = 'waiting' AND t.status = 'queued'
                        AND (t.not_before IS NULL OR t.not_before <= now())
                        AND s.mode = 'auto' AND s.quarantined_at IS NULL AND (s.lease_until IS NULL OR s.lease_until < now())
                    ORDER BY t.opened_at LIMIT 1 FOR UPDATE OF t SKIP LOCKED)
        RETURNING id INTO v_turn;
    END IF;
    RETURN v_turn;
END $$;

-- Stop an open turn: flagged where a worker carries it (it notices within half a second), ended at once where none does; true if ended.
-- The caller holds the session's row.
CREATE FUNCTION stop_turn(p_workspace uuid, p_session uuid, p_turn uuid, p_reason text, p_by text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_running boolean;
    v_leased boolean;
    v_fence bigint;
BEGIN
    SELECT t.status = 'running', s.lease_until > now(), s.lease_fence INTO v_running, v_leased, v_fence
    FROM turns t JOIN sessions s ON s.id = t.session_id WHERE t.id = p_turn;
    UPDATE turns SET cancel_requested_at = now(), cancel_reason = p_reason, cancelled_by = p_by, updated_at = now()
    WHERE id = p_turn AND cancel_requested_at IS NULL;
    IF v_running AND v_leased THEN
        RETURN false;
    END IF;
    IF v_running THEN  -- its worker is gone, or asleep: what it still writes is refused by the fence
        v_fence := v_fence + 1;
        UPDATE sessions SET lease_fence = v_fence WHERE id = p_session;
    END IF;
    PERFORM close_turn(p_workspace, p_session, p_turn, v_fence, 'cancelled', p_reason, NULL, cancelled_content(p_reason, p_by));
    RETURN true;
END $$;

CREATE FUNCTION cancelled_content(p_reason text, p_by text) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_strip_nulls(jsonb_build_object('status', 'cancelled', 'error_class', p_reason, 'text', 'The reply was cancelled.', 'by', p_by,
        'rolled_back', CASE WHEN p_reason = 'RolledBack' THEN true END))
$$;

DROP FUNCTION accept_message(uuid, uuid, jsonb, jsonb, text, text);

-- p_window: how many turns of a workspace may be rung or running; p_max_open: how many turns of the session may be open.
CREATE FUNCTION accept_message(
    p_workspace uuid, p_session uuid, p_content jsonb, p_metadata jsonb, p_key text, p_strategy text,
    p_window integer DEFAULT 200, p_max_open integer DEFAULT NULL,
    OUT o_outcome text, OUT o_event_id uuid, OUT o_offset integer, OUT o_created_at timestamptz,
    OUT o_turn_id uuid, OUT o_turn_status text, OUT o_ring uuid)
LANGUAGE plpgsql AS $$
DECLARE
    s record;
    a record;
    t record;  -- the session's last open turn
    v_strategy text;
    v_same boolean;
    v_open boolean;
    v_stopped boolean := false;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    SELECT status, mode, agent_id, quarantined_at INTO s FROM sessions WHERE id = p_session FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        o_outcome := 'no_session';
        RETURN;
    END IF;
    IF p_key IS NOT NULL THEN
        SELECT e.id, e."offset", e.created_at, e.turn_id, t2.status, e.kind = 'customer_message' AND e.content->'text' = p_content->'text'
        INTO o_event_id, o_offset, o_created_at, o_turn_id, o_turn_status, v_same
        FROM events e LEFT JOIN turns t2 ON t2.id = e.turn_id
        WHERE e.session_id = p_session AND e.message_key = p_key;
        IF FOUND THEN
            o_outcome := CASE WHEN v_same THEN 'repeated' ELSE 'conflict' END;
            RETURN;
        END IF;
    END IF;
    IF s.status <> 'active' THEN
        o_outcome := 'session_ended';
        RETURN;
    END IF;
    SELECT strategy, allow_interruption, status, deleted_at INTO a FROM agents WHERE id = s.agent_id;
    IF a.status <> 'active' OR a.deleted_at IS NOT NULL THEN
        o_outcome := 'agent_inactive';
        RETURN;
    END IF;

    IF s.mode <> 'manual' THEN
        v_strategy := coalesce(p_strategy, a.strategy);
        IF v_strategy IN ('interrupt', 'rollback') AND NOT a.allow_interruption THEN
            v_strategy := 'coalesce';
        END IF;
        SELECT id, status, strategy, attempts + writes = 0 AND status = 'queued' AS untouched, cancel_requested_at IS NOT NULL AS stopping
        INTO t FROM turns
        WHERE session_id = p_session AND status IN ('queued', 'running', 'waiting')
        ORDER BY opened_at_offset DESC LIMIT 1;
        v_open := FOUND;
        IF v_open THEN
            IF v_strategy = 'reject' THEN
                o_outcome := 'busy';
                RETURN;
            ELSIF p_max_open IS NOT NULL AND p_max_open <= (SELECT count(*) FROM turns
                    WHERE session_id = p_session AND status IN ('queued', 'running', 'waiting')) THEN
                o_outcome := 'too_many_open';
                RETURN;
            ELSIF v_strategy = 'rollback' AND EXISTS (
                    SELECT 1 FROM tool_calls c JOIN turns o ON o.id = c.turn_id
                    WHERE o.session_id = p_session AND o.status IN ('queued', 'running', 'waiting') AND c.effect = 'unsafe'
                        AND (c.state IN ('running', 'succeeded', 'unknown') OR c.state = 'failed' AND c.attempts > 0)) THEN
                o_outcome := 'unsafe_ran';
                RETURN;
            ELSIF v_strategy IN ('interrupt', 'rollback') THEN
                -- Before the message gets its offset: what ends here ends before it in the log.
                SELECT coalesce(bool_or(stop_turn(p_workspace, p_session, o.id,
                        CASE v_strategy WHEN 'interrupt' THEN 'Interrupted' ELSE 'RolledBack' END, 'customer')), false)
                INTO v_stopped
                FROM (SELECT id FROM turns WHERE session_id = p_session AND status IN ('queued', 'running', 'waiting')
                          AND (status <> 'queued' OR attempts + writes > 0) AND cancel_requested_at IS NULL
                      ORDER BY opened_at_offset) o;
            END IF;
        END IF;
    END IF;

    UPDATE sessions SET next_offset = next_offset + 1, event_count = event_count + 1, message_count = message_count + 1,
        last_activity_at = now()
    WHERE id = p_session RETURNING next_offset - 1 INTO o_offset;
    o_outcome := 'accepted';
    IF s.mode <> 'manual' THEN
        IF v_open AND NOT t.stopping AND (
                v_strategy IN ('interrupt', 'rollback') AND t.untouched
                OR v_strategy = 'coalesce' AND t.strategy <> 'enqueue') THEN
            o_turn_id := t.id;
            o_turn_status := t.status;
        ELSE
            o_turn_status := 'queued';
            INSERT INTO turns (workspace_id, session_id, strategy, opened_at_offset, place)
            VALUES (p_workspace, p_session, v_strategy, o_offset, 'behind') RETURNING id INTO o_turn_id;
        END IF;
        IF NOT v_open OR v_stopped THEN
            o_ring := ring_first(p_workspace, p_session, p_window);
        END IF;
    END IF;
    INSERT INTO events (workspace_id, session_id, "offset", kind, source, content, metadata, turn_id, message_key, fence)
    SELECT p_workspace, p_session, o_offset, 'customer_message', 'customer', p_content, p_metadata, o_turn_id, p_key, lease_fence
    FROM sessions WHERE id = p_session
    RETURNING id, created_at INTO o_event_id, o_created_at;
END $$;

-- The session's first open turn, if it may be rung now: its place is granted, or, with the workspace's window full, it waits.
CREATE FUNCTION ring_first(p_workspace uuid, p_session uuid, p_window integer) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    v_turn uuid;
    v_place text;
BEGIN
    UPDATE turns SET place = CASE WHEN p_window <= (SELECT count(*) FROM (SELECT 1 FROM turns g
                WHERE g.workspace_id = p_workspace AND g.place = 'granted' AND g.status IN ('queued', 'running') LIMIT p_window) w)
            THEN 'waiting' ELSE 'granted' END
    FROM sessions s
    WHERE turns.id = (SELECT id FROM turns WHERE session_id = p_session AND status IN ('queued', 'running', 'waiting')
                      ORDER BY opened_at_offset LIMIT 1)
        AND s.id = p_session AND s.mode = 'auto' AND s.quarantined_at IS NULL
        AND turns.status = 'queued' AND turns.place <> 'granted' AND (turns.not_before IS NULL OR turns.not_before <= now())
    RETURNING turns.id, turns.place INTO v_turn, v_place;
    RETURN CASE WHEN v_place = 'granted' THEN v_turn END;
END $$;

DROP FUNCTION claim_turn(uuid, text, double precision, integer, integer);

-- p_owner names this one execution: the same call sent again after its reply was lost finds its own claim.
CREATE FUNCTION claim_turn(
    p_turn uuid, p_owner text, p_lease_s double precision, p_max_attempts integer, p_window integer,
    OUT o_outcome text, OUT o_workspace uuid, OUT o_session uuid, OUT o_fence bigint, OUT o_writes integer, OUT o_attempts integer,
    OUT o_elapsed_s double precision, OUT o_carried_s double precision, OUT o_opened_at_offset integer, OUT o_budgeted boolean,
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
    v_ending jsonb;  -- how the claim before this one ended, if badly
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
        cancel_requested_at, cancel_reason, cancelled_by, carried_s, agent_version, agent_digest, redrives
    INTO t FROM turns WHERE id = p_turn;
    v_mine := coalesce(s.leased AND s.lease_owner = p_owner, false);
    IF t.status NOT IN ('queued', 'running', 'waiting') THEN
        o_outcome := 'settled';
        RETURN;
    ELSIF s.leased AND NOT v_mine THEN
        o_outcome := 'busy';
        RETURN;
    ELSIF t.cancel_requested_at IS NOT NULL AND NOT v_mine THEN  -- whoever carried it died before it heard
        UPDATE sessions SET lease_fence = lease_fence + 1 WHERE id = o_session RETURNING lease_fence INTO o_fence;
        PERFORM close_turn(o_workspace, o_session, p_turn, o_fence, 'cancelled', t.cancel_reason, NULL,
            cancelled_content(t.cancel_reason, t.cancelled_by));
        o_next_turn := hand_on(o_workspace, o_session);
        o_outcome := 'settled';
        RETURN;
    ELSIF t.early OR s.mode <> 'auto' OR s.quarantined_at IS NOT NULL THEN
        o_outcome := CASE WHEN t.early THEN 'early' WHEN s.mode <> 'auto' THEN 'paused' ELSE 'quarantined' END;
        -- It gives its place in the workspace's window back, and gets one again when it may be carried.
        UPDATE turns SET place = 'waiting' WHERE id = p_turn AND status = 'queued' AND place = 'granted';
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
            v_ending := ending_of(p_turn, v_lost > 0);
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
                'claimed ' || t.attempts || ' times without coming to a rest'
                    || coalesce('; last: ' || (v_ending->>'error_class') || coalesce(', ' || (v_ending->>'detail'), ''), ''),
                jsonb_build_object('text', 'This message could not be answered.'));
            o_next_turn := hand_on(o_workspace, o_session);
            o_outcome := 'dead';
            RETURN;
        END IF;
        o_attempts := t.attempts + 1;
        IF t.status = 'running' THEN  -- the time of a claim that was cut counts as long as its lease held
            t.carried_s := t.carried_s + greatest(0, extract(epoch FROM least(now(), s.lease_until) - t.claimed_at));
        END IF;
    END IF;

    -- The agent as it was when the turn was first claimed, whatever has been changed since.
    IF t.agent_digest IS NULL THEN
        SELECT n.digest INTO t.agent_digest FROM take_snapshot(o_workspace, s.agent_id) n;
    END IF;
    SELECT snapshot, version INTO o_agent, t.agent_version FROM agent_snapshots WHERE agent_id = s.agent_id AND digest = t.agent_digest;
    -- What the tools are connected to is as of now: an address that was put right or a secret that was changed counts at once.
    SELECT json_agg(json_build_object('tool_id', i.tool_id, 'id', i.id, 'integration_type', i.integration_type,
            'configuration', i.configuration, 'secrets', i.secrets, 'parameter_mapping', i.parameter_mapping,
            'response_mapping', i.response_mapping) ORDER BY i.priority DESC, i.created_at)
    INTO o_integrations
    FROM tool_integrations i JOIN tools tl ON tl.id = i.tool_id
    WHERE i.tool_id IN (SELECT (x->>'id')::uuid FROM jsonb_array_elements(o_agent->'tools') x)
        AND i.enabled AND tl.enabled AND i.health_status <> 'unhealthy';

    IF o_attempts > 1 OR t.writes > 0 OR t.redrives > 0 THEN  -- somebody was here before
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

    v_upper := turn_upper(o_session, t.opened_at_offset);
    IF v_mine AND o_pending IS NULL THEN
        -- Asked again, its reply was lost: the call that is reserved reads what it was to read then, and the next one what came since.
        v_upper := least(v_upper, t.read_through_offset + 1);
    END IF;
    o_read_through := turn_heard(o_session, t.opened_at_offset, v_upper);
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
    ELSE  -- nothing is in progress, so the next step is a model call: reserve it here, and save a commit
        INSERT INTO model_calls (turn_id, step, attempt, workspace_id, session_id, provider, model, state)
        VALUES (p_turn, o_step, o_attempt, o_workspace, o_session, o_agent->'agent'->>'model_provider', o_agent->'agent'->>'model_name',
            'reserved');
    END IF;
    IF NOT v_mine THEN
        UPDATE turns SET status = 'running', attempts = o_attempts, fence = o_fence, rings = 0, place = 'granted', claimed_at = now(),
            updated_at = now(), started_at = coalesce(started_at, now()), not_before = NULL, read_through_offset = o_read_through,
            agent_version = t.agent_version, agent_digest = t.agent_digest, carried_s = t.carried_s
        WHERE id = p_turn;
    END IF;
    o_budgeted := EXISTS (SELECT 1 FROM budgets_of(o_workspace, s.agent_id, o_session));
    o_opened_at_offset := t.opened_at_offset;
    o_writes := t.writes;
    o_carried_s := t.carried_s;
    o_elapsed_s := extract(epoch FROM now() - coalesce(t.started_at, now()));
    o_outcome := 'claimed';
END $$;

-- How a turn's last claim ended, where it ended badly: with an error, or (its lease ran out) without a word. p_asking: while its model call
-- was out. A turn that nobody has claimed since it was redriven has none.
CREATE FUNCTION ending_of(p_turn uuid, p_asking boolean) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('claimed_at', t.claimed_at) || CASE t.status
        WHEN 'running' THEN jsonb_build_object('error_class', 'WorkerLost', 'detail', 'while it waited for ' || CASE
            WHEN p_asking THEN 'the model'
            ELSE (SELECT string_agg(tool_name, ', ' ORDER BY position) FROM tool_calls WHERE turn_id = p_turn AND state = 'running') END)
        ELSE jsonb_build_object('error_class', t.error_class, 'detail', t.error_detail) END
    FROM turns t WHERE t.id = p_turn AND t.started_at IS NOT NULL AND (t.status = 'running' OR t.error_class IS NOT NULL)
$$;

-- The agent and its tools as they are now, kept under the digest of what they are; the same thing is kept once.
CREATE FUNCTION take_snapshot(p_workspace uuid, p_agent uuid, OUT digest text) LANGUAGE plpgsql AS $$
DECLARE
    v_version integer;
    v_snapshot jsonb;
BEGIN
    SELECT a.version, jsonb_build_object(
        'agent', jsonb_build_object('id', a.id, 'version', a.version, 'model_provider', a.model_provider, 'model_name', a.model_name,
            'temperature', a.temperature, 'max_tokens', a.max_tokens, 'name', a.name, 'system_prompt', a.system_prompt,
            'conversation_style', a.conversation_style),
        'tools', coalesce((SELECT jsonb_agg(jsonb_build_object('id', tl.id, 'name', tl.name, 'description', tl.description,
                'parameters', tl.parameters, 'return_schema', tl.return_schema, 'usage_guidelines', tl.usage_guidelines,
                'effect', tl.effect, 'approval', coalesce(at.configuration->>'approval', CASE tl.effect WHEN 'unsafe' THEN 'required'
                                                                                             ELSE 'never' END))
                ORDER BY at.priority DESC, tl.name)
            FROM agent_tools at JOIN tools tl ON tl.id = at.tool_id
            WHERE at.agent_id = a.id AND at.enabled AND tl.enabled), '[]'))
    INTO v_version, v_snapshot
    FROM agents a WHERE a.id = p_agent;
    digest := encode(sha256(convert_to(v_snapshot::text, 'UTF8')), 'hex');
    IF NOT EXISTS (SELECT 1 FROM agent_snapshots k WHERE k.agent_id = p_agent AND k.digest = take_snapshot.digest) THEN
        INSERT INTO agent_snapshots (agent_id, digest, workspace_id, version, snapshot)
        VALUES (p_agent, take_snapshot.digest, p_workspace, v_version, v_snapshot) ON CONFLICT DO NOTHING;
    END IF;
END $$;

DROP FUNCTION write_turn(uuid, uuid, uuid, bigint, integer, jsonb);

-- o_stop: why the turn must not go on (Cancelled, Interrupted, RolledBack, TakenOver, Paused); what the change meant to begin was then
-- not begun: its tool calls stand as requested, its model call was not reserved. o_refused: why no budget lets it call the model.
CREATE FUNCTION write_turn(
    p_workspace uuid, p_session uuid, p_turn uuid, p_fence bigint, p_write integer, p_change jsonb,
    OUT o_outcome text, OUT o_last_offset integer, OUT o_news json, OUT o_read_through integer, OUT o_next_turn uuid,
    OUT o_stop text, OUT o_refused text)
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
    v_upper := turn_upper(p_session, t.opened_at_offset);
    o_outcome := 'written';
    o_last_offset := s.next_offset - 1;
    o_stop := CASE WHEN t.cancel_requested_at IS NOT NULL THEN t.cancel_reason WHEN s.mode = 'manual' THEN 'TakenOver'
                   WHEN s.mode = 'paused' THEN 'Paused' END;
    IF t.writes > p_write THEN
        o_outcome := 'repeated';  -- this very write was committed, and its reply lost: nothing of it is written again
        IF v_reserve IS NOT NULL THEN  -- what became of the call is told again, whatever has been asked for since
            IF EXISTS (SELECT 1 FROM model_calls WHERE turn_id = p_turn AND step = (v_reserve->>'step')::integer
                    AND attempt = (v_reserve->>'attempt')::integer AND state = 'reserved'
                    AND reserved_tokens IS NOT DISTINCT FROM (v_reserve->>'reserved_tokens')::bigint) THEN
                o_stop := NULL;
            ELSIF o_stop IS NULL AND v_reserve->>'reserved_tokens' IS NOT NULL THEN
                o_refused := 'A budget is spent.';
            ELSE
                o_stop := coalesce(o_stop, 'Paused');
            END IF;
        END IF;
    ELSIF t.status IS DISTINCT FROM 'running' THEN
        RAISE EXCEPTION 'the turn is no longer running' USING ERRCODE = 'TL001';
    ELSE
        IF v_status = 'done' AND o_stop = 'Paused' THEN  -- the reply is paid for and not said; the turn waits as it was
            v_status := 'queued';
            v_rest := '{"wait_s": 0, "refund": true}';
            v_events := '[]';
        ELSIF v_status = 'done' AND o_stop IS NOT NULL THEN  -- a person was quicker than the reply: they win
            v_status := 'cancelled';
            v_events := jsonb_build_array(jsonb_build_object('kind', 'status_update', 'source', 'system',
                'metadata', jsonb_strip_nulls(jsonb_build_object('read_through', v_events->-1->'metadata'->'read_through')), 'content',
                cancelled_content(o_stop, t.cancelled_by) || CASE WHEN o_stop = 'TakenOver' THEN '{}'::jsonb
                    ELSE jsonb_build_object('partial_text', v_events->-1->'content'->'text') END));
        END IF;
        IF v_status = 'cancelled' THEN
            v_rest := jsonb_build_object('error_class', coalesce(o_stop, v_rest->>'error_class'));
            IF t.cancelled_by IS NOT NULL THEN
                v_events := jsonb_set(v_events, '{-1,content,by}', to_jsonb(t.cancelled_by));
            END IF;
            UPDATE approvals SET status = 'cancelled', decided_at = now() WHERE turn_id = p_turn AND status = 'pending';
        END IF;
        IF p_change ? 'tool_calls' THEN
            INSERT INTO tool_calls (workspace_id, session_id, turn_id, tool_call_id, step, position, tool_id, tool_name, effect, state,
                arguments, arguments_hash, idempotency_key)
            SELECT p_workspace, p_session, p_turn, r.tool_call_id, r.step, r.position, r.tool_id, r.tool_name, r.effect,
                CASE WHEN r.approval_hash IS NOT NULL THEN 'awaiting_approval' WHEN o_stop IS NULL THEN 'running' ELSE 'requested' END,
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
        IF p_change ? 'starts' THEN  -- approved, or put off: begun now, each approval once and for what it was given for
            UPDATE approvals p SET used_at = now() FROM jsonb_to_recordset(p_change->'starts') AS r (tool_call_id text, approval_hash text)
            WHERE p.session_id = p_session AND p.tool_call_id = r.tool_call_id AND p.status = 'approved' AND p.used_at IS NULL
                AND p.arguments_hash = r.approval_hash;
            UPDATE tool_calls tc SET state = 'running' FROM jsonb_to_recordset(p_change->'starts') AS r (tool_call_id text)
            WHERE tc.session_id = p_session AND tc.tool_call_id = r.tool_call_id AND o_stop IS NULL
                AND (tc.state = 'requested' OR tc.state = 'awaiting_approval' AND EXISTS (SELECT 1 FROM approvals p
                     WHERE p.session_id = p_session AND p.tool_call_id = tc.tool_call_id AND p.used_at = now()));
            GET DIAGNOSTICS v_unread = ROW_COUNT;
            IF o_stop IS NULL AND v_unread <> jsonb_array_length(p_change->'starts') THEN
                RAISE EXCEPTION 'a tool call was begun that nobody approved' USING ERRCODE = 'TL002';
            END IF;
        END IF;
        IF p_change ? 'tool_results' THEN
            UPDATE tool_calls tc SET state = r.state, attempts = tc.attempts + r.attempts, latency_ms = r.latency_ms, error = r.error,
                integration_id = r.integration_id, settled_at = now()
            FROM jsonb_to_recordset(p_change->'tool_results')
                AS r (tool_call_id text, state text, attempts integer, latency_ms integer, error text, integration_id uuid)
            WHERE tc.session_id = p_session AND tc.tool_call_id = r.tool_call_id;
        END IF;
        -- Budgets last, so that they are held briefly; settled first, so that what this call did not use has room for the next.
        IF c.reserved_tokens IS NOT NULL THEN
            PERFORM settle_budgets(p_turn, c.step, c.attempt, c.state, c.cost_usd, (c.input_tokens + c.output_tokens)::bigint);
        END IF;
        IF v_reserve IS NOT NULL AND o_stop IS NULL THEN
            o_refused := reserve_budgets(p_workspace, s.agent_id, p_session, p_turn, (v_reserve->>'step')::integer,
                (v_reserve->>'attempt')::integer, (v_reserve->>'reserved_usd')::numeric, (v_reserve->>'reserved_tokens')::bigint);
            IF o_refused IS NOT NULL THEN
                NULL;  -- said to the worker, which ends the turn with the reason
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
        IF v_reserve IS NOT NULL AND o_stop IS NULL AND o_refused IS NULL THEN
            -- the model call that this commit reserves reads everything there is by now
            t.read_through_offset := greatest(t.read_through_offset, turn_heard(p_session, t.opened_at_offset, v_upper));
            UPDATE turns SET writes = p_write + 1, read_through_offset = t.read_through_offset WHERE id = p_turn;
        ELSIF v_status IN ('queued', 'waiting') THEN  -- parked: nobody holds it until not_before, or until somebody decides
            IF v_status = 'waiting' THEN
                SELECT min(expires_at) INTO v_until FROM approvals p JOIN tool_calls tc USING (session_id, tool_call_id)
                WHERE p.turn_id = p_turn AND tc.state = 'awaiting_approval'
                HAVING bool_and(p.status = 'pending');
                IF v_until IS NULL THEN  -- decided while it was carried: it goes on at once
                    v_status := 'queued';
                END IF;
            END IF;
            UPDATE turns SET writes = p_write + 1, status = v_status, rung_at = NULL, rings = 0, place = 'waiting',
                not_before = coalesce(v_until, now() + make_interval(secs => (v_rest->>'wait_s')::double precision)),
                attempts = attempts - (v_rest->>'refund')::boolean::integer, carried_s = carried_s + extract(epoch FROM now() - claimed_at),
                error_class = v_rest->>'error_class', error_detail = v_rest->>'error_detail', updated_at = now()
            WHERE id = p_turn;
        ELSIF v_status IS NOT NULL THEN
            IF v_status = 'done' THEN  -- customer messages that no call has read open the next turn, in this commit
                SELECT min("offset") INTO v_unread FROM events
                WHERE session_id = p_session AND kind = 'customer_message'
                    AND "offset" > coalesce(t.read_through_offset, t.opened_at_offset - 1) AND "offset" < v_upper;
                IF v_unread IS NOT NULL THEN
                    INSERT INTO turns (workspace_id, session_id, strategy, opened_at_offset, place)
                    VALUES (p_workspace, p_session, t.strategy, v_unread, 'behind');
                END IF;
            ELSE  -- its messages are accounted for by its reason
                t.read_through_offset := turn_heard(p_session, t.opened_at_offset, v_upper);
            END IF;
            UPDATE turns SET writes = p_write + 1, status = v_status, read_through_offset = t.read_through_offset, not_before = NULL,
                carried_s = carried_s + extract(epoch FROM now() - claimed_at),
                error_class = v_rest->>'error_class', error_detail = v_rest->>'error_detail', settled_at = now(), updated_at = now()
            WHERE id = p_turn;
        ELSE
            UPDATE turns SET writes = p_write + 1 WHERE id = p_turn;
        END IF;
        IF v_status IN ('queued', 'waiting') AND o_stop <> 'Paused' THEN  -- it is to stop, so it does not wait first
            PERFORM close_turn(p_workspace, p_session, p_turn, p_fence, 'cancelled', o_stop, NULL,
                cancelled_content(o_stop, t.cancelled_by));
            SELECT next_offset - 1 INTO o_last_offset FROM sessions WHERE id = p_session;
        END IF;
    END IF;

    IF v_reserve IS NOT NULL THEN
        -- From what the worker has heard on, to what the call that is reserved reads; said again where its reply was lost.
        SELECT max("offset"), json_agg(json_build_object('offset', "offset", 'kind', kind, 'source', source, 'content', content,
            'metadata', metadata, 'turn_id', turn_id) ORDER BY "offset")
        INTO o_read_through, o_news
        FROM events
        WHERE session_id = p_session AND kind = 'customer_message' AND "offset" < v_upper AND "offset" <= t.read_through_offset
            AND "offset" > greatest((v_reserve->>'heard')::integer, t.opened_at_offset - 1);
    ELSIF v_rest IS NOT NULL THEN
        o_next_turn := hand_on(p_workspace, p_session);
    END IF;
END $$;
