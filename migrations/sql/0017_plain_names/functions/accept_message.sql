-- Stores a customer's message: its event, the session's counters and, by the strategy, the turn that will answer it. Reopens an
-- abandoned session. p_window is how many turns of the workspace may be rung or running, p_max_open how many turns of the session may
-- be open. o_outcome: accepted, repeated or conflict (the key was used before), no_session, session_ended, agent_inactive, busy,
-- too_many_open, unsafe_ran. o_dispatch is the turn to ring after the commit.
-- Locks: the session's row, then its turns.
-- Callers: store/conversations/intake.py.

CREATE OR REPLACE FUNCTION accept_message(
    p_workspace uuid, p_session uuid, p_content jsonb, p_metadata jsonb, p_key text, p_strategy text,
    p_window integer DEFAULT 200, p_max_open integer DEFAULT NULL,
    OUT o_outcome text, OUT o_event_id uuid, OUT o_offset integer, OUT o_created_at timestamptz,
    OUT o_turn_id uuid, OUT o_turn_status text, OUT o_dispatch uuid)
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
    IF s.status = 'abandoned' THEN  -- a customer who comes back finds the session as it was
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
                -- Stop them before the message gets its offset, so that their last events stand before it in the log.
                SELECT coalesce(bool_or(cancel_turn(p_workspace, p_session, o.id,
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
            INSERT INTO turns (workspace_id, session_id, strategy, opened_at_offset, admission)
            VALUES (p_workspace, p_session, v_strategy, o_offset, 'blocked') RETURNING id INTO o_turn_id;
        END IF;
        IF NOT v_open OR v_stopped THEN
            o_dispatch := admit_first(p_workspace, p_session, p_window);
        END IF;
    END IF;
    INSERT INTO events (workspace_id, session_id, "offset", kind, source, content, metadata, turn_id, message_key, fence)
    SELECT p_workspace, p_session, o_offset, 'customer_message', 'customer', p_content, p_metadata, o_turn_id, p_key, lease_fence
    FROM sessions WHERE id = p_session
    RETURNING id, created_at INTO o_event_id, o_created_at;
END $$;
