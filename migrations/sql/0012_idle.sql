-- Sessions in which nothing has happened for long are given up, and taken up again by whoever says something in them. Approvals expire
-- where no turn looks at them.

-- Give up those of p_sessions in which nothing has happened for p_idle_s seconds, nothing is open and nobody has to look; how many. They
-- ended with the last thing that happened in them. As turnline_maintenance.
CREATE FUNCTION abandon_sessions(p_sessions uuid[], p_idle_s double precision) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    s record;
    v_count integer := 0;
BEGIN
    FOR s IN SELECT id, workspace_id, lease_fence, last_activity_at FROM sessions
             WHERE id = ANY (p_sessions) AND status = 'active' AND deleting_at IS NULL AND quarantined_at IS NULL
                AND last_activity_at < now() - make_interval(secs => p_idle_s) AND (lease_until IS NULL OR lease_until < now())
             ORDER BY id FOR NO KEY UPDATE SKIP LOCKED LOOP
        CONTINUE WHEN EXISTS (SELECT 1 FROM turns WHERE session_id = s.id AND status IN ('queued', 'running', 'waiting'));
        PERFORM append_events(s.workspace_id, s.id, NULL, s.lease_fence,
            '[{"kind": "status_update", "source": "system", "content": {"status": "abandoned"}}]');
        UPDATE sessions SET status = 'abandoned', ended_at = s.last_activity_at, updated_at = now() WHERE id = s.id;
        v_count := v_count + 1;
    END LOOP;
    RETURN v_count;
END $$;

-- Take a session up again that was given up. The caller holds its row.
CREATE FUNCTION reopen_session(p_workspace uuid, p_session uuid, p_fence bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE sessions SET status = 'active', ended_at = NULL, updated_at = now() WHERE id = p_session;
    PERFORM append_events(p_workspace, p_session, NULL, p_fence,
        '[{"kind": "status_update", "source": "system", "content": {"status": "reopened"}}]');
END $$;

-- Let approvals of these sessions expire whose time has run out, and say so in their logs; how many. A session that a worker carries is left
-- to the worker. As turnline_maintenance, which sees no arguments; nobody has decided, so there is nothing else to say.
CREATE FUNCTION expire_approvals(p_sessions uuid[]) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    s record;
    t record;
    v_count integer := 0;
BEGIN
    FOR s IN SELECT id, workspace_id, lease_fence FROM sessions
             WHERE id = ANY (p_sessions) AND deleting_at IS NULL AND (lease_until IS NULL OR lease_until < now())
             ORDER BY id FOR NO KEY UPDATE SKIP LOCKED LOOP
        FOR t IN WITH late AS (UPDATE approvals SET status = 'expired', decided_at = now()
                               WHERE session_id = s.id AND status = 'pending' AND expires_at <= now()
                               RETURNING id, turn_id, tool_call_id, tool_name, decided_at)
                 SELECT turn_id, count(*) AS n, jsonb_agg(jsonb_build_object('kind', 'status_update', 'source', 'system',
                     'content', jsonb_build_object('status', 'approval_decided', 'decision', 'expired', 'approval_id', id,
                         'tool_call_id', tool_call_id, 'tool_name', tool_name, 'decided_at', decided_at))) AS events
                 FROM late GROUP BY turn_id LOOP
            PERFORM append_events(s.workspace_id, s.id, t.turn_id, s.lease_fence, t.events);
            v_count := v_count + t.n;
        END LOOP;
    END LOOP;
    RETURN v_count;
END $$;

-- As of 0005; a session that was given up is taken up again.

-- p_window: how many turns of a workspace may be rung or running; p_max_open: how many turns of the session may be open.
CREATE OR REPLACE FUNCTION accept_message(
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
    SELECT status, mode, agent_id, lease_fence INTO s FROM sessions WHERE id = p_session FOR NO KEY UPDATE;
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
    IF s.status = 'completed' THEN
        o_outcome := 'session_ended';
        RETURN;
    END IF;
    SELECT strategy, allow_interruption, status, deleted_at INTO a FROM agents WHERE id = s.agent_id;
    IF a.status <> 'active' OR a.deleted_at IS NOT NULL THEN
        o_outcome := 'agent_inactive';
        RETURN;
    END IF;
    IF s.status = 'abandoned' THEN  -- it was only given up: whoever comes back finds it as it was
        PERFORM reopen_session(p_workspace, p_session, s.lease_fence);
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

-- A person's message, as themselves or on the agent's behalf; opens no turn. Outcomes as accept_message's.
CREATE OR REPLACE FUNCTION say_as_person(
    p_workspace uuid, p_session uuid, p_source text, p_content jsonb, p_metadata jsonb, p_key text,
    OUT o_outcome text, OUT o_event_id uuid, OUT o_offset integer, OUT o_created_at timestamptz)
LANGUAGE plpgsql AS $$
DECLARE
    s record;
    v_same boolean;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    SELECT status, lease_fence INTO s FROM sessions WHERE id = p_session FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        o_outcome := 'no_session';
        RETURN;
    END IF;
    IF p_key IS NOT NULL THEN
        SELECT e.id, e."offset", e.created_at, e.source = p_source AND e.content->'text' = p_content->'text'
        INTO o_event_id, o_offset, o_created_at, v_same FROM events e WHERE e.session_id = p_session AND e.message_key = p_key;
        IF FOUND THEN
            o_outcome := CASE WHEN v_same THEN 'repeated' ELSE 'conflict' END;
            RETURN;
        END IF;
    END IF;
    IF s.status = 'completed' THEN
        o_outcome := 'session_ended';
        RETURN;
    ELSIF s.status = 'abandoned' THEN
        PERFORM reopen_session(p_workspace, p_session, s.lease_fence);
    END IF;
    UPDATE sessions SET next_offset = next_offset + 1, event_count = event_count + 1, message_count = message_count + 1,
        last_activity_at = now()
    WHERE id = p_session RETURNING next_offset - 1 INTO o_offset;
    INSERT INTO events (workspace_id, session_id, "offset", kind, source, content, metadata, message_key, fence)
    VALUES (p_workspace, p_session, o_offset, 'agent_message', p_source, p_content, p_metadata, p_key, s.lease_fence)
    RETURNING id, created_at INTO o_event_id, o_created_at;
    o_outcome := 'accepted';
END $$;

-- Give a turn that ended without a reply another go: from its last step, or (p_scratch) from its messages again. Lifts the session's
-- quarantine. o_outcome: redriven, not_found, not_ended (still open), answered, cancelled, answered_later, unsafe_ran, session_ended,
-- manual.
CREATE OR REPLACE FUNCTION redrive_turn(
    p_workspace uuid, p_turn uuid, p_scratch boolean, p_by text, p_window integer,
    OUT o_outcome text, OUT o_session uuid, OUT o_offset integer, OUT o_ring uuid)
LANGUAGE plpgsql AS $$
DECLARE
    s record;
    t record;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    SELECT session_id INTO o_session FROM turns WHERE id = p_turn;
    IF NOT FOUND THEN
        o_outcome := 'not_found';
        RETURN;
    END IF;
    SELECT status, lease_fence, mode INTO s FROM sessions WHERE id = o_session FOR NO KEY UPDATE;
    SELECT status, opened_at_offset INTO t FROM turns WHERE id = p_turn;
    o_outcome := CASE
        WHEN t.status = 'done' THEN 'answered'
        WHEN t.status = 'cancelled' THEN 'cancelled'
        WHEN t.status NOT IN ('dead', 'failed') THEN 'not_ended'
        WHEN s.status = 'completed' THEN 'session_ended'
        WHEN s.mode = 'manual' THEN 'manual'
        WHEN EXISTS (SELECT 1 FROM turns WHERE session_id = o_session AND opened_at_offset > t.opened_at_offset
                     AND status IN ('running', 'waiting', 'done')) THEN 'answered_later'
        WHEN p_scratch AND EXISTS (SELECT 1 FROM tool_calls c WHERE turn_id = p_turn
                     AND coalesce(effect, (SELECT l.effect FROM tools l WHERE l.id = c.tool_id)) = 'unsafe'
                     AND (state IN ('running', 'succeeded', 'unknown') OR state = 'failed' AND attempts > 0)) THEN 'unsafe_ran'
        ELSE 'redriven' END;
    IF o_outcome <> 'redriven' THEN
        RETURN;
    END IF;
    IF s.status = 'abandoned' THEN
        PERFORM reopen_session(p_workspace, o_session, s.lease_fence);
    END IF;
    PERFORM append_events(p_workspace, o_session, p_turn, s.lease_fence, jsonb_build_array(jsonb_build_object(
        'kind', 'status_update', 'source', 'system', 'content',
        jsonb_build_object('status', 'redriven', 'from_scratch', p_scratch, 'by', p_by))));
    UPDATE sessions SET quarantined_at = NULL, dead_in_row = 0 WHERE id = o_session RETURNING next_offset - 1 INTO o_offset;
    UPDATE turns SET status = 'queued', attempts = 0, redrives = redrives + 1, not_before = NULL, rung_at = NULL, rings = 0,
        place = 'behind', endings = jsonb_path_query_array(endings || coalesce(ending_of(p_turn, false), '[]'),
            '$[last - 19 to last]'),
        error_class = NULL, error_detail = NULL, settled_at = NULL, read_through_offset = NULL, started_at = NULL,
        carried_s = 0, cancel_requested_at = NULL, cancel_reason = NULL, cancelled_by = NULL, updated_at = now(),
        agent_digest = CASE WHEN p_scratch THEN NULL ELSE agent_digest END
    WHERE id = p_turn;
    o_ring := ring_first(p_workspace, o_session, p_window);
END $$;
